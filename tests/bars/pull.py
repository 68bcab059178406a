"""Bar 1 of issue 5: a prefix made on one worker, pulled by another; the demo model in float32 on a CPU.

First by hand, worker to worker: the answer must have the log-probabilities of a cold run. Then through the
router, which must pull by itself when the holder is busy, and recompute when the link is slow.
"""

import asyncio
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.grant import source_key
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_proto.transfer_pb2 import Claims, Pull
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_router.grant import Granter
from warmfleet_router.local import demo

from loadtest.client import play
from loadtest.workloads import Turn, message
from tests.bars.fleet import Fleet, get, giving_fleet, worker
from tests.bars.programs import programs
from tests.bars.rows import Row
from tests.process.gateway import Stream, packed

PREFIX, NEW, PAIRS, BLOCK = 1000, 60, 3, 16
PATIENCE_S = 120.0  # for a prefill on a machine that others use
FLEET_KEY = bytes(range(32))
AGREES = 1e-4
SLOW_BYTES_PER_S = 2e6  # recomputing makes about 30 MB of KV a second


class End(NamedTuple):
    name: str
    address: str
    channel: grpc.aio.Channel
    stub: Any
    gateway: Stream


class Answer(NamedTuple):
    ttft_s: float
    logprobs: list[dict[int, float]]  # of the likeliest tokens, a position
    started: pb.Started


def main() -> list[Row]:
    with asyncio.Runner() as runner:  # one loop: gRPC's events come late, and to the first loop of a process
        return [*runner.run(by_hand()), *by_router(runner), *over_a_slow_link(runner)]


# ---- by hand ---------------------------------------------------------------------------------------


async def by_hand() -> list[Row]:
    rng = random.Random(5)
    real = ["engine=torch", f"model={demo.weights()}", "dtype=float32", "threads=1"]
    async with ends({"a": real, "b": real}) as (a, b):
        await answer(a, 1, prompt(rng))
        await answer(b, 1, prompt(rng))  # the first steps of a process are slow
        pairs = [await pulled(a, b, handle, prompt(rng)) for handle in range(2, 2 + PAIRS)]
    cold = median(first.ttft_s for first, _ in pairs)
    pull = median(second.ttft_s for _, second in pairs)
    worst = max(difference(*pair) for pair in pairs)
    last = pairs[-1][1].started
    shown = f"{pull / cold:.2f}x ({1e3 * pull:.0f} ms against {1e3 * cold:.0f} ms)"
    exact = "largest difference of a log-probability, pulled against cold"
    ttft = f"TTFT of {PREFIX} pulled + {NEW} new tokens over cold, medians of {PAIRS}"
    megabytes, milliseconds = last.pulled.bytes / 1e6, 1e3 * last.pulled.seconds
    came = f"{megabytes:.0f} MB of {last.peer_tokens} tokens in {milliseconds:.0f} ms"
    return [
        Row("5.1", exact, f"{worst:.1e}", f"<= {AGREES:.0e}", worst <= AGREES),
        Row("5.1", ttft, shown, "<= .35x", pull <= 0.35 * cold),
        Row("5.1", "the last pull", came),
    ]


@asynccontextmanager
async def ends(settings: dict[str, list[str]]) -> AsyncIterator[list[End]]:
    """Workers by their names, with keys of their own, and a stream to each."""
    with tempfile.TemporaryDirectory() as folder, programs() as starter:
        started = []
        for name, own in settings.items():
            key = Path(folder) / f"{name}.key"
            key.write_text(source_key(FLEET_KEY, name).hex())
            started.append(worker(starter, name, [*own, f"transfer.key_file={key}"]))
        ready = [program.ready()["grpc"] for program in started]
        made = [await open_end(*each) for each in zip(settings, ready, strict=True)]
        try:
            yield made
        finally:
            for end in made:
                await end.gateway.close()
                await end.channel.close()


async def open_end(name: str, address: str) -> End:
    channel = connect(address)
    stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
    gateway = Stream(stub, "bar", {})
    gateway.patience_s = PATIENCE_S
    await gateway.open()
    return End(name, address, channel, stub, gateway)


def prompt(rng: random.Random) -> list[int]:
    return rng.choices(range(1000, 40_000), k=PREFIX + NEW)


async def answer(end: End, handle: int, token_ids: list[int], **submit: Any) -> Answer:
    """Eight tokens with twenty alternatives each."""
    began = time.perf_counter()
    await end.gateway.submit(handle, token_ids, 8, logprobs=20, ignore_eos=True, **submit)
    await end.gateway.until(handle, 1)
    ttft_s = time.perf_counter() - began
    await end.gateway.finish(handle)
    told = end.gateway.logprobs[handle, 0]
    likeliest = [dict(zip(unpacked(t.top_ids), t.top_logprobs, strict=True)) for t in told]
    return Answer(ttft_s, likeliest, end.gateway.started[handle])


async def pulled(a: End, b: End, handle: int, token_ids: list[int]) -> tuple[Answer, Answer]:
    """Cold on a, then on b with a pull of the prefix."""
    cold = await answer(a, handle, token_ids)
    assert cold.started.cached_tokens == 0
    pull = await pull_of(a, b, token_ids[:PREFIX])
    return cold, await answer(b, handle, token_ids, pull=pull)


async def pull_of(a: End, b: End, token_ids: list[int]) -> Pull:
    status = await a.stub.Status(pb.StatusRequest())
    root = root_hash(status.model_fingerprint, status.block_size)
    hashes = chain(root, packed(token_ids), status.block_size)
    claims = Claims(
        source=a.name,
        target=b.name,
        epoch=status.epoch,
        root=root,
        keys=keys(hashes),
        expires_s=status.load.clock_s + 10,
    )
    grant = Granter(FLEET_KEY).grant(claims)
    return Pull(source=a.name, address=a.address, tokens=len(hashes) * BLOCK, within_s=5.0, grant=grant)


def difference(cold: Answer, pulled: Answer) -> float:
    """Of any log-probability that both name; infinite where they disagree on the tokens."""
    worst = 0.0
    for one, other in zip(cold.logprobs, pulled.logprobs, strict=True):
        if max(one, key=one.__getitem__) != max(other, key=other.__getitem__):
            return float("inf")
        worst = max([worst, *(abs(one[token] - other[token]) for token in one.keys() & other.keys())])
    return worst


def unpacked(data: bytes) -> list[int]:
    return memoryview(data).cast("I").tolist()


# ---- through the router ----------------------------------------------------------------------------


def by_router(runner: asyncio.Runner) -> list[Row]:
    with giving_fleet(2) as fleet:
        placed, moved = runner.run(shared_prefixes(fleet))
    return [
        Row(
            "5.1",
            "the holder is busy: the router pulls, as its admin page shows",
            f"{len(moved)} pairs, {sum(m['bytes'] for m in moved) / 1e6:.0f} MB, "
            f"{sum(m['saved_prefill_s'] for m in moved):.1f} s of prefill saved",
            "a pull to the idle worker",
            bool(moved) and placed != moved[0]["source"],
        )
    ]


def over_a_slow_link(runner: asyncio.Runner) -> list[Row]:
    """The first pull teaches the router what the link is; those after it are not made."""
    with giving_fleet(2, f"transfer.bytes_per_s={SLOW_BYTES_PER_S}") as fleet:
        runner.run(shared_prefixes(fleet))
        before = pulls(fleet)
        runner.run(shared_prefixes(fleet))
        after = pulls(fleet)
    made = sum(m["pulls"] for m in after) - sum(m["pulls"] for m in before)
    learned = f"{sum(m['pulls'] for m in before)} pulls before it knew the link, {made} after"
    return [Row("5.1", "a link throttled far below break-even", learned, "0 after", made == 0)]


async def shared_prefixes(fleet: Fleet) -> tuple[str, list[dict[str, Any]]]:
    """A prefix made somewhere, its maker kept busy, the prefix asked for again: who served that."""
    rng = random.Random(time.time_ns())
    system = message(rng, "system", PREFIX + 8)

    async def ask() -> str:
        turn = Turn(0.0, 0, (system, message(rng, "user", NEW)), 0, 4)
        (record,) = await play(fleet.url, [turn], model=fleet.model)
        assert record.finished, record.error
        placements = json.loads(get(f"{fleet.url}/admin/placements"))["placements"]
        return str(placements[0]["worker"])

    for _ in range(2):  # prices are learned from what was served
        await play(fleet.url, [Turn(0.0, 0, (message(rng, "user", 400),), 0, 4)], model=fleet.model)
    maker = await ask()
    async with busy(fleet.places[int(maker[1:])], rng):
        placed = await ask()
    return placed, pulls(fleet)


@asynccontextmanager
async def busy(address: str, rng: random.Random) -> AsyncIterator[None]:
    """A worker with prompts of its own to compute, which its router hears of."""
    channel = connect(address)
    gateway = Stream(WorkerStub(channel), f"other-{rng.random()}", {})  # type: ignore[no-untyped-call]
    gateway.patience_s = PATIENCE_S
    await gateway.open()
    for handle in (1, 2):
        await gateway.submit(handle, rng.choices(range(1000, 40_000), k=3000), 1)
    await asyncio.sleep(0.6)  # for the router to hear of them
    try:
        yield
        for handle in (1, 2):
            await gateway.send(cancel={"handle": handle})
            await gateway.end(handle)
    finally:
        await gateway.close()
        await channel.close()


def pulls(fleet: Fleet) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(get(f"{fleet.url}/admin/pulls"))["pulls"]
    return shown
