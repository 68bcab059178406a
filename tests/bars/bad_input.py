"""Bar 7: bad requests, and what clients notice of a worker's death. The tests hold the whole list."""

import asyncio
import time
from typing import Any

import aiohttp
import msgspec

from loadtest.client import CHAT_PATH, ask, session
from loadtest.records import Record
from tests.bars.fleet import Fleet, sim_fleet
from tests.bars.rows import Row

STREAMS = 12
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "able acid area"}], "max_tokens": 64}

# What is sent, and the field that the error must name.
BAD: dict[bytes, str] = {
    b"{": "body",
    b"[" * 10_000: "body",
    msgspec.json.encode(GOOD | {"max_tokens": -1}): "max_tokens",
    msgspec.json.encode(GOOD | {"max_tokens": 10**12}): "max_tokens",
    msgspec.json.encode(GOOD | {"n": 10**9}): "n",
    msgspec.json.encode(GOOD | {"temperature": -1}): "temperature",
    msgspec.json.encode(GOOD | {"stop": ["x"] * 10_000}): "stop",
    msgspec.json.encode(GOOD | {"messages": []}): "messages",
    msgspec.json.encode(GOOD | {"no_such_field": 1}): "no_such_field",
    msgspec.json.encode(GOOD | {"model": "no such model"}): "model",
}


def main() -> list[Row]:
    with sim_fleet(4) as fleet:
        return [*asyncio.run(refusals(fleet)), *asyncio.run(death(fleet))]


async def refusals(fleet: Fleet) -> list[Row]:
    before = fleet.counts()
    async with session(fleet.url) as http:
        await refusal(http, b"{")  # the connection
        found = [await refusal(http, body) for body in BAD]
    right = sum(
        400 <= status < 500 and named == field
        for (status, named, _), field in zip(found, BAD.values(), strict=True)
    )
    slowest = max(seconds for _, _, seconds in found)
    untouched = fleet.counts() == before and fleet.router.process.poll() is None
    return [
        Row(
            "7",
            "bad requests: a 4xx that names the field",
            f"{right} of {len(BAD)}",
            "all",
            right == len(BAD),
        ),
        Row("7", "bad requests: slowest answer", f"{1e3 * slowest:.0f} ms", "<= 100 ms", slowest <= 0.1),
        Row("7", "bad requests: router alive, no worker asked", str(untouched), "True", untouched),
    ]


async def refusal(http: aiohttp.ClientSession, body: bytes) -> tuple[int, str, float]:
    began = time.perf_counter()
    async with http.post(CHAT_PATH, data=body, headers={"content-type": "application/json"}) as response:
        error = msgspec.json.decode(await response.read())["error"]
    return response.status, error["param"], time.perf_counter() - began


async def death(fleet: Fleet) -> list[Row]:
    """SIGKILL of one worker under streams."""
    body = {"model": fleet.model, "stream": True, "stream_options": {"include_usage": True}}
    records = [Record(n, 0.0) for n in range(STREAMS)]
    async with session(fleet.url) as http:
        bodies = [msgspec.json.encode(GOOD | body | {"user": str(n), "seed": n}) for n in range(STREAMS)]
        streams = [asyncio.create_task(ask(http, b, r)) for b, r in zip(bodies, records, strict=True)]
        await asyncio.sleep(0.6)  # an answer takes at least 64 steps of 20 ms
        busiest = max(fleet.admin()["workers"], key=lambda worker: int(worker["running"]))["worker"]
        fleet.workers[int(busiest[1:])].kill()
        killed = time.perf_counter()
        await next_success(http, msgspec.json.encode(GOOD | {"model": fleet.model, "max_tokens": 1}))
        recovered = time.perf_counter() - killed
        await asyncio.wait(streams, timeout=30)
    cut = sum(bool(r.error) for r in records)
    clean = all(r.finished or r.error not in ("", "the stream ended without [DONE]") for r in records)
    shown = f"{cut} of {STREAMS} cut, the others finished" if clean else str([r.error for r in records])
    return [
        Row("7", "worker killed: next success after", f"{recovered:.3f} s", "<= 1 s", recovered <= 1),
        Row("7", "worker killed: its streams end with an error", shown, "clean", clean and 0 < cut < STREAMS),
    ]


async def next_success(http: aiohttp.ClientSession, body: bytes) -> None:
    while True:
        record = Record(0, 0.0)
        await ask(http, body, record)
        if record.finished:
            return
        await asyncio.sleep(0.01)
