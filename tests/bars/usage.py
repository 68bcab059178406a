"""Beside bar 6.4: what Envoy and the picker spend on answers whose usage the picker reads (``--usage``)."""

import sys
from contextlib import AsyncExitStack
from statistics import median

import uvloop

from loadtest.client import session
from tests.bars.fleet import base
from tests.bars.programs import programs
from tests.bars.relay import SERVERS, TOKENS, Way, cpu_a_chunk, first_tokens, picking, ready, with_picker
from tests.bars.rows import Row

FIRST_TOKENS = 100


def main() -> list[Row]:
    with programs() as starter:
        command = [sys.executable, "-m", "tests.bars.paced_server"]
        servers = [starter.start(f"relay-server-{n}", command) for n in range(SERVERS)]
        router, flags = picking(starter, [base(server.ready()["http"]) for server in servers])
        ways = [
            with_picker(starter, "Envoy", router, flags),
            with_picker(starter, "Envoy-usage", router, [*flags, "--usage"]),
        ]
        return uvloop.run(rows(ways))


async def rows(ways: list[Way]) -> list[Row]:
    async with AsyncExitStack() as stack:
        https = {way.name: await stack.enter_async_context(session(way.url)) for way in ways}
        for way in ways:
            await ready(https[way.name])
        first = await first_tokens(https, 1, FIRST_TOKENS)
        costs = await cpu_a_chunk(ways, https)
    made = []
    for way in ways:
        each_us = 1e6 * median(map(sum, costs[way.name]))
        made.append(Row("6.4", f"{way.name}: CPU a chunk, answers of {TOKENS}", f"{each_us:.1f} us"))
        made.append(Row("6.4", f"{way.name}: first token p50", f"{1e3 * median(first[way.name]):.2f} ms"))
    return made
