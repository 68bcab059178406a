"""Bar 5 of issue 6 with real processes: the beginning of the conversation trace before one, two and four
routers, each a process that watches the same eight sim workers.

A block of the trace's 512 tokens is one of 16 here and takes the same 25 ms, so that prompts are short and
times are true. Nothing is decoded. Clients ask a gateway that knows all routers or, in turn, each of these.
Each way is played twice, the second time in the opposite order: two runs of one router alone differ by more
than a per cent in hit rate.
"""

import asyncio
import hashlib
import json
from array import array
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cache
from itertools import cycle
from statistics import mean
from typing import NamedTuple

from warmfleet_proto.limits import KEY_BYTES
from warmfleet_router.replay.trace import Request, Trace

from loadtest.client import ask, session
from loadtest.records import Record, Summary, summarise
from tests.bars.fleet import VOCAB_SIZE, sim_fleet
from tests.bars.live_vs_sglang import skew, uncached
from tests.bars.load import TIMING
from tests.bars.played import CONVERSATION, TOKEN_S, WORKERS, loaded, spaced
from tests.bars.replicas import HIT_SHARE, IMBALANCE
from tests.bars.rows import Row

SPEED, REQUESTS = 4.0, 900  # .78 utilised, a minute and a quarter
BLOCK = 16
ROUTERS = ((1, False), (2, False), (4, False), (4, True))  # and whether they are asked in turn
SETTINGS = ("max_running=1", "chunk_tokens=1000000", "sim.max_context=131072")
PATH = "/v1/completions"
GRACE_S = 60.0


class Played(NamedTuple):
    records: list[Record]
    skew: float
    imbalance: float


class Outcome(NamedTuple):
    """Of all plays of one way."""

    summary: Summary
    skew: float
    imbalance: float


def main() -> list[Row]:
    trace = spaced(loaded(CONVERSATION, REQUESTS, False))
    played: dict[tuple[int, bool], list[Played]] = {which: [] for which in ROUTERS}
    for which in (*ROUTERS, *reversed(ROUTERS)):
        played[which].append(_played(trace, *which))
        print(f"   {_named(*which)}: {_shown(_outcome(played[which][-1:]))}", flush=True)
    alone, *others = (_outcome(played[which]) for which in ROUTERS)
    return [
        row for which, of in zip(ROUTERS[1:], others, strict=True) for row in _rows(_named(*which), of, alone)
    ]


def _played(trace: Trace, routers: int, in_turn: bool) -> Played:
    timing = dict.fromkeys(TIMING, 0.0) | {"prefill_token_s": TOKEN_S * trace.block_size / BLOCK}
    with sim_fleet(WORKERS, total_blocks=8000, timing=timing, settings=SETTINGS, routers=routers) as fleet:
        urls = fleet.routers if in_turn else [fleet.url]
        records = asyncio.run(_play(urls, fleet.model, trace.requests, trace.block_size))
        return Played(records, skew(uncached(fleet)), _imbalance(records))


async def _play(urls: list[str], model: str, requests: list[Request], block_size: int) -> list[Record]:
    """Each at its time, whatever became of those before. Raises RuntimeError unless all are answered."""
    clock, records = asyncio.get_running_loop().time, []
    async with AsyncExitStack() as stack, asyncio.timeout(requests[-1].arrival_s / SPEED + GRACE_S):
        places = [await stack.enter_async_context(session(url)) for url in urls]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        began = clock()
        for http, request in zip(cycle(places), requests, strict=False):
            due = request.arrival_s / SPEED
            payload = _body(model, request, block_size)
            await asyncio.sleep(began + due - clock())
            records.append(Record(len(records), due, sent=clock() - began))
            group.create_task(ask(http, payload, records[-1], PATH))
    if errors := [record.error for record in records if record.error]:
        raise RuntimeError(f"{len(errors)} of {len(records)} requests failed: {errors[0]}")
    return records


def _body(model: str, request: Request, block_size: int) -> bytes:
    ids = [id_ for key in request.keys for id_ in _block(key)]
    ids += _block(0)[: (request.prompt_tokens - len(request.keys) * block_size) * BLOCK // block_size]
    return json.dumps({"model": model, "prompt": ids or [1], "max_tokens": 1}).encode()


@cache
def _block(key: int) -> list[int]:
    digest = hashlib.sha256(key.to_bytes(KEY_BYTES, "little")).digest()
    return [id_ % VOCAB_SIZE for id_ in array("H", digest)]


def _imbalance(records: list[Record]) -> float:
    """The most in flight at a worker, above the mean."""
    flying: dict[str, float] = {}
    for record in records:
        flying[record.worker] = flying.get(record.worker, 0.0) + (record.e2e or 0.0)
    return max(flying.values()) * WORKERS / sum(flying.values()) - 1.0


def _outcome(plays: Sequence[Played]) -> Outcome:
    records = [record for play in plays for record in play.records]
    return Outcome(summarise(records), mean(p.skew for p in plays), mean(p.imbalance for p in plays))


def _shown(of: Outcome) -> str:
    seen = of.summary
    return (
        f"hit {seen.hit_rate:.3f} skew {of.skew:.2f} imbalance {of.imbalance:.2f} ttft {seen.ttft_mean:.3f}"
        f" p99 {seen.ttft_p99:.2f}"
    )


def _named(routers: int, in_turn: bool) -> str:
    return f"{routers} router{'s' * (routers > 1)}{' in turn' * in_turn}"


def _rows(what: str, of: Outcome, alone: Outcome) -> list[Row]:
    share = of.summary.hit_rate / alone.summary.hit_rate
    ttft = of.summary.ttft_mean / alone.summary.ttft_mean
    return [
        Row(
            "6.5",
            f"live, {what}: hit over one router's; TTFT mean, p99",
            f"{share:.3f}; {ttft:.2f}x ({of.summary.ttft_mean:.3f} s), {of.summary.ttft_p99:.2f} s",
            f">= {HIT_SHARE}",
            share >= HIT_SHARE,
        ),
        Row(
            "6.5",
            f"live, {what}: in flight above the mean (one router {alone.imbalance:.2f}); skew",
            f"{of.imbalance:.2f}; {of.skew:.2f}",
            f"<= {IMBALANCE}",
            of.imbalance <= IMBALANCE,
        ),
    ]
