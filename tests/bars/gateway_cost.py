"""Bar 8: what the gateway and router in front of instant sim workers cost, beside sglang-router.

Both stand over the same workers: ours over gRPC, the peer over the workers' OpenAI face. Latency is the
time to the end of an answer, one request at a time, taking turns between the three ways, less that of a
worker asked directly; CPU is that of the router's process with ``CONCURRENCY`` requests under way. Instant
steps come faster than either router forwards them, so the last row has workers that take time for a step.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from statistics import median
from typing import NamedTuple

import aiohttp
import msgspec

from loadtest.client import ask, session
from loadtest.records import Record
from loadtest.workloads import message
from tests.bars import load
from tests.bars.fleet import sim_fleet
from tests.bars.peers import sglang
from tests.bars.programs import Program
from tests.bars.rows import Row

WORKERS, TOKENS, CONCURRENCY = 2, 64, 16
ONE_BY_ONE, AT_ONCE = 40, 240  # requests a case and way
BYTES_PER_WORD = 5


class Case(NamedTuple):
    prompt_bytes: int
    seen_bytes: int  # of them, in a system prompt that every request shares
    stream: bool

    def __str__(self) -> str:
        seen = f", {self.seen_bytes >> 10} KB of them seen" if self.seen_bytes else ""
        return f"{self.prompt_bytes / 1024:.3g} KB{seen}, {'streamed' if self.stream else 'whole'}"


CASES = [Case(size << 10, seen << 10, stream) for stream in (False, True) for size, seen in ((2, 0), (32, 0))]
CASES += [Case((32 << 10) + 200, 32 << 10, stream) for stream in (False, True)]


class Way(NamedTuple):
    """Where to send a request, and whose CPU to count."""

    name: str
    url: str
    program: Program | None


class Cost(NamedTuple):
    p50_s: float
    cpu_s: float  # a request
    chunks: float  # of an answer


def main() -> list[Row]:
    with sim_fleet(WORKERS, instant=True) as fleet:
        peer, peer_url = sglang(fleet.starter, fleet.faces)
        ways = [
            Way("direct", fleet.faces[0], None),
            Way("ours", fleet.url, fleet.router),
            Way("sglang-router", peer_url, peer),
        ]
        found = [asyncio.run(measure(case, ways, fleet.model)) for case in CASES]
    return [*(row for case, costs in zip(CASES, found, strict=True) for row in rows(case, *costs)), paced()]


def paced() -> Row:
    case, count = Case(2 << 10, 0, True), 6 * CONCURRENCY
    with sim_fleet(WORKERS) as fleet:
        peer, peer_url = sglang(fleet.starter, fleet.faces)
        ways = [Way("ours", fleet.url, fleet.router), Way("sglang-router", peer_url, peer)]
        ours, theirs = [asyncio.run(cpu_alone(case, way, fleet.model, count)) for way in ways]
    figure = f"{1e3 * ours:.2f} / {1e3 * theirs:.2f}, {ours / max(1e-6, theirs):.2f}x"
    return Row("8", f"{case}, {1e3 * load.STEP_S:.0f} ms a step: CPU ms a request, ours / peer", figure)


async def cpu_alone(case: Case, way: Way, model: str, count: int) -> float:
    bodies = payloads(case, model)
    async with session(way.url) as http:
        await asyncio.gather(*(answered(http, next(bodies)) for _ in range(CONCURRENCY)))
        return await cpu_s(way, http, bodies, count)


def rows(case: Case, direct: Cost, ours: Cost, peer: Cost) -> Iterator[Row]:
    added, peer_added = 1e3 * (ours.p50_s - direct.p50_s), 1e3 * (peer.p50_s - direct.p50_s)
    ratio = f", {added / peer_added:.2f}x" if peer_added > 0 else ""
    cpus = f"{1e3 * ours.cpu_s:.2f} / {1e3 * peer.cpu_s:.2f}, {ours.cpu_s / max(1e-6, peer.cpu_s):.2f}x"
    yield Row("8", f"{case}: CPU ms a request, ours / peer", cpus)
    figure = f"{added:.2f} / {peer_added:.2f}{ratio} (direct {1e3 * direct.p50_s:.2f})"
    yield Row("8", f"{case}: added p50 ms, ours / peer", figure)
    if case.stream:
        chunks = f"{ours.chunks:.0f} / {peer.chunks:.0f}"
        yield Row("8", f"{case}: chunks with text an answer, ours / peer", chunks)


async def measure(case: Case, ways: list[Way], model: str) -> list[Cost]:
    """One cost a way, in their order."""
    bodies = payloads(case, model)
    async with AsyncExitStack() as stack:
        https = [await stack.enter_async_context(session(way.url)) for way in ways]
        for http in https:  # connections, and the prefix that is shared
            await asyncio.gather(*(answered(http, next(bodies)) for _ in range(CONCURRENCY)))
        turns = [[await answered(http, next(bodies)) for http in https] for _ in range(ONE_BY_ONE)]
        cpus = [await cpu_s(way, http, bodies, AT_ONCE) for way, http in zip(ways, https, strict=True)]
    return [cost(list(records), used) for records, used in zip(zip(*turns, strict=True), cpus, strict=True)]


def cost(records: list[Record], cpu: float) -> Cost:
    chunks = sum(len(r.itls) + 1 for r in records) / len(records)
    return Cost(median(r.e2e or 0 for r in records), cpu, chunks)


async def cpu_s(way: Way, http: aiohttp.ClientSession, bodies: Iterator[bytes], count: int) -> float:
    """CPU seconds a request of the way's own process, none for a worker asked directly."""
    if way.program is None:
        return 0.0
    before = way.program.cpu_s()
    left = itertools.islice(bodies, count)

    async def one_after_the_other() -> None:
        for body in left:
            await answered(http, body)

    await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENCY)))
    return (way.program.cpu_s() - before) / count


async def answered(http: aiohttp.ClientSession, body: bytes) -> Record:
    record = Record(0, 0.0)
    await ask(http, body, record)
    if not record.finished:
        raise RuntimeError(record.error)
    return record


def payloads(case: Case, model: str) -> Iterator[bytes]:
    """Encoded bodies without end, each with text that was never sent before."""
    rng = random.Random(repr(case))
    shared = (
        message(rng, "system", case.seen_bytes // BYTES_PER_WORD).content if case.seen_bytes else "be brief"
    )
    while True:
        new = message(rng, "user", (case.prompt_bytes - case.seen_bytes) // BYTES_PER_WORD).content
        body = {
            "model": model,
            "messages": [{"role": "system", "content": shared}, {"role": "user", "content": new}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        yield msgspec.json.encode(body | ({"stream": True} if case.stream else {}))
