"""``python -m tests.bars.gpu.fleet``: bar 8, a whole fleet with torch workers, a policy after the other.

The workers stay, each policy has a router of its own and prompts that no other has seen, at the same times
and of the same lengths. An engine profile is fitted to a run before them; with it the replay predicts each.
"""

import asyncio
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from warmfleet_proto.settings import load as load_settings
from warmfleet_router.decisions import reader
from warmfleet_router.replay import fit
from warmfleet_router.replay.fitting import error
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.history import history
from warmfleet_router.replay.profile import Profile
from warmfleet_router.routing import Routing

from loadtest.client import play
from loadtest.records import Record, summarise
from loadtest.workloads import AgentShape, Turn, agent, message
from tests.bars.fleet import base, get, router_settings, start, worker
from tests.bars.gpu.folder import export_tokenizer, make
from tests.bars.programs import Starter, programs
from tests.bars.rows import Row, table

POLICIES = ("round_robin", "prefix_hash", "cheapest")
WITHIN = 0.15  # of the measurement: the replay's prediction
LOADING_S = 240.0
SEED = 8


class Found(NamedTuple):
    """Of one policy, measured or predicted."""

    hit: float
    ttft_s: float  # mean
    rate: float  # completion tokens a second, from the first arrival to the last end


class Measured(NamedTuple):
    found: Found
    shown: str


def main() -> int:
    args = _arguments()
    with TemporaryDirectory() as folder, programs() as starter:
        work = Path(folder)
        tokenizer = Path(args.tokenizer) if args.tokenizer else _demo_tokenizer(work)
        model = make(Path(args.folder or work / "model"), args.shape, tokenizer, args.devices[0])
        places = _workers(starter, args, model)
        log = work / "calibration.jsonl"
        with _router(starter, "cheapest", places, model, log) as (url, name):
            for turns in _calibration(args.longest):
                asyncio.run(play(url, turns, model=name))
        profile, steps = fit.of_log(str(log), Profile(name="fitted"))
        rows = [
            Row(
                "8",
                f"engine profile fitted to {len(steps)} steps",
                f"{error(profile, steps):.1%} median error",
            )
        ]
        rows.append(Row("8", "prefill", f"{1e6 * profile.prefill_token:.1f} us a token, {profile}"))
        for policy in POLICIES:
            log = work / f"{policy}.jsonl"
            with _router(starter, policy, places, model, log) as (url, name):
                records = asyncio.run(play(url, _named(_turns(args), policy), model=name, grace=60.0))
            rows += _judge(policy, _measured(records), _predicted(log, profile))
            print(*rows[-2:], sep="\n", flush=True)
    print(f"\n{table(rows)}")
    return 0


def _arguments() -> Namespace:
    count = torch.cuda.device_count()
    parser = ArgumentParser()
    parser.add_argument(
        "--devices", nargs=2, default=["cuda:0", f"cuda:{count - 1}"] if count else ["cpu", "cpu"]
    )
    parser.add_argument("--shape", default="8b" if count else "small")
    parser.add_argument("--tokenizer", default="", help="a folder; default: the demo model's")
    parser.add_argument("--folder", default="", help="where the model's folder is made, or lies")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=14.0, help="requests a second")
    parser.add_argument("--blocks", type=int, default=4_000, help="of each worker")
    parser.add_argument("--chunk", type=int, default=2_048)
    parser.add_argument("--longest", type=int, default=6_000, help="words of the longest prefix")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    return parser.parse_args()


def _demo_tokenizer(work: Path) -> Path:
    from warmfleet_router.local import demo

    export_tokenizer(demo.weights(), work / "tokenizer")
    return work / "tokenizer"


def _workers(starter: Starter, args: Namespace, model: Path) -> list[str]:
    """HOST:PORT of their gRPC."""
    started = []
    for n, device in enumerate(args.devices):
        settings = ["engine=torch", f"model={model}", f"device={device}", f"total_blocks={args.blocks}"]
        started.append(worker(starter, f"w{n}", [*settings, f"chunk_tokens={args.chunk}"]))
    return [str(program.ready(LOADING_S)["grpc"]) for program in started]


@contextmanager
def _router(
    starter: Starter, policy: str, places: Sequence[str], model: Path, log: Path
) -> Iterator[tuple[str, str]]:
    """Its URL and what clients call the model."""
    settings = [*router_settings(policy, places), f"model={model}", f"decision_log={log}"]
    program = start(starter, "router", "warmfleet_router", settings)
    url = base(program.ready()["http"])
    for _ in program.polls(60):
        healthy = json.loads(get(f"{url}/admin/workers"))["fleet"]["healthy"]
        models = [each["id"] for each in json.loads(get(f"{url}/v1/models"))["data"]]
        if healthy == len(places) and models:
            break
    else:
        raise RuntimeError(f"the workers did not join: {program.tail()}")
    yield url, models[0]
    program.stop()


def _calibration(longest: int) -> Iterator[list[Turn]]:
    """Prompts of many lengths one after another, some on a prefix that is cached; then answers of many."""
    random, conversation = Random(SEED), 0
    for words in [longest >> n for n in range(6)] * 3:
        known = (message(random, "system", words),)
        for _ in range(2):
            asked = (*known, message(random, "user", 1 + words // 8))
            yield [Turn(0.0, conversation, asked, 0, 2)]
            conversation += 1
    for count in (1, 2, 4, 8, 16, 32, 64):
        asked = [(message(random, "user", 100 + longest // 40),) for _ in range(count)]
        yield [Turn(0.0, conversation + n, each, 0, 192) for n, each in enumerate(asked)]
        conversation += count


def _turns(args: Namespace) -> list[Turn]:
    shape = AgentShape(
        prefixes=24, shortest=args.longest // 4, longest=args.longest, zipf=0.8, max_tokens=args.tokens
    )
    return agent(args.rate, args.seconds, SEED, shape)


def _named(turns: Sequence[Turn], policy: str) -> list[Turn]:
    """The same turns with a first word of their own: nothing that another policy left behind is found."""
    named = []
    for turn in turns:
        first = turn.messages[0]
        mine = first._replace(content=f"{policy} {first.content}")
        named.append(turn._replace(messages=(mine, *turn.messages[1:])))
    return named


def _measured(records: Sequence[Record]) -> Measured:
    told = summarise(records)
    sent = [r.sent for r in records if r.sent is not None]
    ends = [r.sent + r.e2e for r in records if r.sent is not None and r.e2e is not None]
    rate = sum(r.completion_tokens for r in records) / (max(ends) - min(sent))
    shown = f"p99 {told.ttft_p99:.3f} s, ITL p99 {1e3 * told.itl_p99:.0f} ms, "
    shown += f"finished {told.finished}/{told.requests}"
    return Measured(Found(told.hit_rate, told.ttft_mean, rate), shown)


def _predicted(log: Path, profile: Profile) -> Found:
    told = history(reader.read(str(log)))
    trace = told.trace("run")
    sets = [f"{key}={json.dumps(value)}" for key, value in told.routing.items()]
    fleet = Fleet(load_settings(Routing, None, sets), profile, trace.block_size, told.blocks)
    fleet.run(trace, 1.0, lambda done: None)
    seen = fleet.outcomes
    span = max(o.arrival_s + o.e2e_s for o in seen) - min(o.arrival_s for o in seen)
    return Found(
        sum(o.cached_tokens for o in seen) / sum(o.prompt_tokens for o in seen),
        sum(o.ttft_s for o in seen) / len(seen),
        sum(request.completion_tokens for request in trace.requests) / span,
    )


def _judge(policy: str, measured: Measured, replay: Found) -> list[Row]:
    ours, shown = measured
    off = [f / o - 1 for f, o in zip(replay[1:], ours[1:], strict=True)]
    met = max(map(abs, off)) <= WITHIN
    figure = f"hit {ours.hit:.3f}, TTFT mean {ours.ttft_s:.3f} s, {shown}, {ours.rate:,.0f} tok/s"
    said = f"hit {replay.hit:.3f}, TTFT mean {replay.ttft_s:.3f} s ({off[0]:+.0%}), "
    said += f"{replay.rate:,.0f} tok/s ({off[1]:+.0%})"
    return [
        Row("8", policy, figure),
        Row("8", f"{policy}: the replay's prediction", said, "within 15 %", met),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
