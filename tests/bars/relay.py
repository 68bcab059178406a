"""Bar 6.4: streams of a token every 20 ms relayed from servers that are not ours, beside sglang-router.

The same servers stand behind the embedded gateway, behind Envoy with the router as its picker, behind
Envoy alone, and behind sglang-router; each way in turn relays the same streams, round after round. Chunks
a second of one core are chunks over the CPU seconds of all processes of the way. Added time to the first
token is against the servers asked directly, all ways taking turns.
"""

import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import msgspec
import uvloop

from loadtest.client import session
from tests.bars.fleet import base, get
from tests.bars.paced_server import MODEL, STEP_S
from tests.bars.peers import free_port, sglang
from tests.bars.programs import LOGS, Program, Starter, programs
from tests.bars.rows import Row
from tests.process.data_plane import binary

SERVERS, STREAMS, TOKENS, ROUNDS = 2, 128, 250, 3
TIMES_ONE, AT_ONCE, TIMES, TURNS = 200, 16, 20, 5  # first tokens one at a time; AT_ONCE at a time
GATEWAY, ENVOY, ADDED_MS = 0.6, 1.0, 1.0
ALONE = "Envoy, no picker"  # what it leaves for a pick
PROMPT_WORDS = 400


Costs = dict[str, list[list[float]]]  # by way: of each round the CPU seconds a chunk of each program


class Way(NamedTuple):
    name: str
    url: str
    programs: list[Program]

    def cpu_s(self) -> list[float]:
        """Of each program."""
        return [program.cpu_s() for program in self.programs]


def main() -> list[Row]:
    with programs() as starter:
        command = [sys.executable, "-m", "tests.bars.paced_server"]
        servers = [starter.start(f"relay-server-{n}", command) for n in range(SERVERS)]
        urls = [base(server.ready()["http"]) for server in servers]
        ways = [Way("direct", urls[0], []), *embedded(starter, urls)]
        peer, peer_url = sglang(starter, urls)
        ways.append(Way("sglang-router", peer_url, [peer]))
        return uvloop.run(rows(ways))


def embedded(starter: Starter, urls: list[str]) -> list[Way]:
    """The router with its gateway, and Envoy with the router as its picker: one process of ours for both."""
    router, flags = picking(starter, urls)
    envoy = with_picker(starter, "Envoy", router, flags)
    written = json.loads((LOGS / "relay-Envoy.json").read_bytes())
    alone_config, alone_listen = LOGS / "relay-envoy-alone.json", f"127.0.0.1:{free_port()}"
    alone_config.write_text(json.dumps(without_picker(written, alone_listen)))
    alone = data_plane(starter, "relay-envoy-alone", alone_config)
    return [
        Way("gateway", base(router.ready()["http"]), [router]),
        envoy,
        Way(ALONE, f"http://{alone_listen}", [alone]),
    ]


def picking(starter: Starter, urls: list[str]) -> tuple[Program, list[str]]:
    """A router that knows all servers, and its flags."""
    config = LOGS / "relay-router.toml"
    config.write_text("\n".join(f'[[backends]]\nurl = "{url}"' for url in urls))
    places = ["http=127.0.0.1:0", "listen=127.0.0.1:0", f"picker=127.0.0.1:{free_port()}"]
    flags = ["--config", str(config), *(part for place in places for part in ("--set", place))]
    router = starter.start("relay-router", [sys.executable, "-m", "warmfleet_router", *flags])
    url = base(router.ready()["http"])
    for _ in router.polls(30):
        if json.loads(get(f"{url}/admin/workers"))["fleet"]["healthy"] == len(urls):
            break
    return router, flags


def with_picker(starter: Starter, name: str, router: Program, flags: list[str]) -> Way:
    """Envoy as ``envoy-config`` with these flags has it."""
    config, listen = LOGS / f"relay-{name}.json", f"127.0.0.1:{free_port()}"
    write = [sys.executable, "-m", "warmfleet_router.cli", "envoy-config", "--listen", listen, *flags]
    made = starter.start(f"relay-{name}-config", write)
    made.process.wait(60)
    config.write_bytes(made.log.read_bytes())
    return Way(name, f"http://{listen}", [data_plane(starter, f"relay-{name}", config), router])


def data_plane(starter: Starter, name: str, config: Path) -> Program:
    command = [str(binary()), "-c", str(config), "--use-dynamic-base-id", "--concurrency", "1"]
    return starter.start(name, [*command, "--log-level", "error"])


def without_picker(config: dict[str, Any], listen: str) -> dict[str, Any]:
    """The same Envoy as a plain proxy: servers in turn, no filter but its router."""
    (listener,), (fleet, _) = (config["static_resources"][kind] for kind in ("listeners", "clusters"))
    listener["address"]["socket_address"]["port_value"] = int(listen.rpartition(":")[2])
    del listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0]
    del fleet["load_balancing_policy"]  # in turn, then
    config["static_resources"]["clusters"] = [fleet]
    return config


async def rows(ways: list[Way]) -> list[Row]:
    async with AsyncExitStack() as stack:
        https = {way.name: await stack.enter_async_context(session(way.url)) for way in ways}
        for way in ways:
            await ready(https[way.name])
        alone, together = await first_tokens(https, 1, TIMES_ONE), await first_tokens(https, AT_ONCE, TIMES)
        costs = await cpu_a_chunk(ways[1:], https)
    return [*relayed(costs), *added(alone, together)]


async def ready(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with http.post("/v1/chat/completions", data=body(1), headers=JSON) as response:
                    if response.status == 200:
                        await response.read()
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def cpu_a_chunk(ways: list[Way], https: dict[str, aiohttp.ClientSession]) -> Costs:
    """In each round."""
    costs: Costs = {way.name: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            before = way.cpu_s()
            counts = await asyncio.gather(*(stream(https[way.name], n) for n in range(STREAMS)))
            cut = sorted(count for count in counts if count < TOKENS)
            if cut:
                print(f"   {way.name}: cut {len(cut)} of {STREAMS} streams short, at events {cut}")
            spent = [after - was for after, was in zip(way.cpu_s(), before, strict=True)]
            costs[way.name].append([seconds / sum(counts) for seconds in spent])
    return costs


async def stream(http: aiohttp.ClientSession, number: int) -> int:
    """Events of one answer; streams begin spread over a second."""
    await asyncio.sleep(number / STREAMS)
    events = 0
    async with http.post("/v1/chat/completions", data=body(TOKENS), headers=JSON) as response:
        assert response.status == 200, await response.text()
        async for data in response.content.iter_any():
            events += data.count(b"data: ")
    return events


async def first_tokens(
    https: dict[str, aiohttp.ClientSession], at_once: int, times: int
) -> dict[str, list[float]]:
    """Seconds of each way; the ways take turns. Of one client, ``times`` requests one after the other; of
    more, each goes on reading for half a second, and pauses for up to a step: clients know nothing of steps.
    """
    seconds: dict[str, list[float]] = {name: [] for name in https}
    chance, tokens = random.Random(at_once), 2 if at_once == 1 else 25

    async def one_after_another(http: aiohttp.ClientSession, into: list[float]) -> None:
        for _ in range(times // TURNS):
            if at_once > 1:
                await asyncio.sleep(chance.random() * STEP_S)
            into.append(await first_token(http, tokens))

    for _ in range(TURNS):
        for name, http in https.items():
            await asyncio.gather(*(one_after_another(http, seconds[name]) for _ in range(at_once)))
    return seconds


async def first_token(http: aiohttp.ClientSession, tokens: int) -> float:
    began = time.perf_counter()
    async with http.post("/v1/chat/completions", data=body(tokens), headers=JSON) as response:
        await response.content.readany()
        seconds = time.perf_counter() - began
        await response.read()
    return seconds


def chunks_a_core(costs: list[list[float]]) -> float:
    return 1 / median(map(sum, costs))


def relayed(costs: Costs) -> Iterator[Row]:
    rates = {name: chunks_a_core(rounds) for name, rounds in costs.items()}
    peer = rates["sglang-router"]
    yield Row("6.4", "sglang-router: chunks/s of a core", f"{peer:.0f}")
    plain = rates[ALONE]
    yield Row("6.4", f"{ALONE}: chunks/s of a core", f"{plain:.0f}, {plain / peer:.2f}x")
    for name, least in (("gateway", GATEWAY), ("Envoy", ENVOY)):
        rate = rates[name]
        figure = f"{rate:.0f}, {rate / peer:.2f}x"
        yield Row("6.4", f"{name}: chunks/s of a core", figure, f">= {least:.1f}x", rate >= least * peer)
    proxy, router = (1e6 * median(seconds) for seconds in zip(*costs["Envoy"], strict=True))
    shown = f"{proxy:.1f}, {router:.1f} us ({1e6 / plain:.1f} with no picker)"
    yield Row("6.4", "Envoy: CPU a chunk, its own and the router's", shown)


def added(alone: dict[str, list[float]], together: dict[str, list[float]]) -> Iterator[Row]:
    def over(seconds: dict[str, list[float]], name: str) -> float:
        return 1e3 * (median(seconds[name]) - median(seconds["direct"]))

    peer_alone, peer = over(alone, "sglang-router"), over(together, "sglang-router")
    yield Row("6.4", "sglang-router: added first token p50, c = 1 and 16", f"{peer_alone:.2f}, {peer:.2f} ms")
    plain = f"{over(alone, ALONE):.2f}, {over(together, ALONE):.2f} ms"
    yield Row("6.4", f"{ALONE}: added first token p50, c = 1 and 16", plain)
    for name in ("gateway", "Envoy"):
        one, many = over(alone, name), over(together, name)
        what = f"{name}: added first token p50"
        yield Row("6.4", f"{what}, c = 1", f"{one:.2f} ms", f"<= {ADDED_MS} ms", one <= ADDED_MS)
        yield Row("6.4", f"{what}, c = {AT_ONCE}", f"{many:.2f} ms", f"<= {peer:.2f} ms", many <= peer)


def body(tokens: int) -> bytes:
    """Text that was never sent before, of about 2 KB."""
    number = next(_numbers)
    text = " ".join(f"w{number * 7919 % 997 + n}" for n in range(PROMPT_WORDS))
    message = {"role": "user", "content": f"{number} {text}"}
    return msgspec.json.encode({"model": MODEL, "messages": [message], "max_tokens": tokens, "stream": True})


JSON = {"Content-Type": "application/json"}
_numbers = itertools.count(os.getpid())
