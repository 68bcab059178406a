"""A relayed stream between a server's connection and a client that does not keep up."""

import asyncio
import json
from typing import cast

import pytest
from warmfleet_proto.router_pb2 import ListWorkersResponse, RouteRequest
from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import LocalRouter
from warmfleet_router.core import RouterCore
from warmfleet_router.gateway.intake import ANONYMOUS
from warmfleet_router.gateway.outlet import Outlet
from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.gateway.relay import Relay, RelayRequest, routed
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget
from warmfleet_router.routing import Routing
from warmfleet_router.servers import ask
from warmfleet_router.servers.catalogue import Servers
from warmfleet_router.servers.pool import ServerPool
from warmfleet_router.servers.sse import PromptDetails, Usage

from tests.unit.router.fleet_of import FakeWorker
from tests.unit.servers.test_servers_connection import EVENTS, asked

PARTS = [b"data: one\n\n", b"data: two\n\n", b"data: [DONE]\n\n"]
ANSWER = EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWER += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in PARTS) + b"0\r\n\r\n"


class Slow:
    """An outlet that is behind after every event, until it is waited for."""

    def __init__(self) -> None:
        self.took: list[bytes] = []
        self.behind = False
        self.waited = asyncio.Event()

    async def begin(self, piece: bytes) -> None:
        self.take(piece)

    def take(self, piece: bytes) -> None:
        self.took.append(piece)
        self.behind = True

    async def drained(self) -> None:
        self.waited.set()
        self.behind = False


@pytest.mark.parametrize("block_size", [1, 16, 128])
async def test_an_image_is_never_taken_for_another_one(block_size: int) -> None:
    """What is shared is the text before it, in blocks of any size, as long as the first one is on its way."""
    core = RouterCore(Routing(), 1)
    worker = FakeWorker(core, "w", status={"block_size": block_size})
    worker.join(-60.0)
    worker.report(0.0)
    system = {"role": "system", "content": "You look at images. " * 50}

    def looking(at: str) -> RouteRequest:
        image = {"type": "image_url", "image_url": {"url": at}}
        messages = [system, {"role": "user", "content": [image]}]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        wanted = RelayRequest("r", ANONYMOUS, ask.parse(body, True), "", b"", 60.0, "/v1/chat/completions")
        return routed(wanted, Servers(), "g")

    first = core.route(looking("http://x/cat.png"), 0.0)
    same = core.explain(looking("http://x/cat.png"), 0.0).candidates[0].overlap_tokens
    other = core.explain(looking("http://x/dog.png"), 0.0).candidates[0].overlap_tokens
    assert same > 750 > other
    assert other == pytest.approx(len(json.dumps(system)) // 4, abs=block_size + 16)
    assert first.expected_tokens == 0


@pytest.mark.parametrize("echo", [False, True])
async def test_of_a_prompt_that_is_scored_nothing_is_expected_to_be_cached(echo: bool) -> None:
    body = json.dumps({"model": "m", "prompt": "hi", "echo": echo, "logprobs": 1}).encode()
    wanted = RelayRequest("r", ANONYMOUS, ask.parse(body, False), "", b"", 60.0, "/v1/completions")
    assert routed(wanted, Servers(), "g").bypass_cache is echo


def relay() -> Relay:
    router = LocalRouter(RouterCore(Routing(), 1), lambda: 0.0)
    fleet = Upstream("g", router, WorkerPool("g"), Reports(router), RetryBudget(), lambda: 0.0)
    servers = Servers()
    servers.update(ListWorkersResponse())
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    wanted = RelayRequest(
        "r", ANONYMOUS, ask.parse(body.encode(), True), "", b"", 60.0, "/v1/chat/completions"
    )
    return Relay(fleet, servers, ServerPool(), wanted)


async def test_a_stream_that_ends_while_its_client_is_behind_is_passed_on_whole() -> None:
    connection, _, reply, _ = asked()
    made, slow = relay(), Slow()
    made._reply = reply
    pouring = asyncio.create_task(made.pour(cast(Outlet, slow)))
    await slow.waited.wait()
    await asyncio.sleep(0)
    connection.data_received(ANSWER)  # its parts and its end, all at once
    await pouring
    assert slow.took == [b"", *PARTS]


async def test_a_first_token_is_told_once_it_has_gone_to_the_client_and_before_the_answer_ends() -> None:
    connection, _, reply, _ = asked()
    made, slow = relay(), Slow()
    made._reply = reply
    took: list[int] = []
    made._upstream.reports.progress = lambda _: took.append(len(slow.took))  # type: ignore[method-assign]
    pouring = asyncio.create_task(made.pour(cast(Outlet, slow)))
    await slow.waited.wait()
    assert took == [1]
    connection.data_received(ANSWER)
    await pouring
    assert took == [1]


async def test_what_the_server_had_cached_is_for_the_log_line_too() -> None:
    made = relay()
    made.usage = Usage(20, 1, PromptDetails(16))
    made._booked = True
    made.finish()
    assert made.cached_tokens == 16
