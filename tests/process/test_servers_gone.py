"""Servers and machines that are gone without a word: whoever waits for their answers hears of it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.core import RouterCore
from warmfleet_router.gateway import relaying, service
from warmfleet_router.routing import Routing
from warmfleet_router.servers import discovery, pool, watcher
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.pool import ServerPool

from tests.process import gateways
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.test_servers import CHAT, LONG, until

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


class Engine:
    """As vLLM shows itself. ``hangs``: it has begun an answer, and from then on says nothing at all."""

    def __init__(self, hangs: bool) -> None:
        self.asked = 0
        self._hangs = hangs
        self._gone = asyncio.Event()
        self._over = asyncio.Event()

    async def shown(self, request: web.Request) -> web.Response:
        if self._gone.is_set():
            await self._over.wait()
        models = {"data": [{"id": "tiny", "max_model_len": 4096}]}
        return web.json_response(models) if request.path == "/v1/models" else web.Response()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        body = await request.json()
        if not self._hangs:
            return web.json_response({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if body.get("stream"):
            await response.prepare(request)
            await response.write(EVENT)
        self._gone.set()
        await self._over.wait()
        return response

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get(path, self.shown) for path in ("/metrics", "/health", "/v1/models")])
        app.add_routes([web.post(CHAT, self.chat)])
        async with TestServer(app) as server:
            try:
                yield str(server.make_url("")).rstrip("/")
            finally:
                self._over.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 0.05)
    monkeypatch.setattr(relaying, "GONE_S", 0.2)
    monkeypatch.setattr(pool, "ANSWER_S", 0.5)
    monkeypatch.setattr(watcher, "POLL_S", 0.02)
    monkeypatch.setattr(discovery, "TIMEOUT_S", 0.5)


@pytest.mark.parametrize("stream", [True, False], ids=["begun", "whole"])
async def test_an_answer_of_an_engine_that_hangs_is_given_up(stream: bool) -> None:
    """What the client has nothing of goes to another server."""
    stuck, well = Engine(hangs=True), Engine(hangs=False)
    async with stuck.served() as first, well.served() as second, aiohttp.ClientSession() as http:
        backends = [{"url": url, "kind": "vllm"} for url in (first, second)]
        async with gateways.router([], backends=backends, routing={"policy": "round_robin"}) as addresses:
            base = f"http://{addresses['http']}"

            async def both() -> bool:
                async with http.get(f"{base}/admin/workers") as response:
                    return bool((await response.json())["fleet"]["healthy"] == 2)

            async def ask(stream: bool) -> tuple[int, bytes]:
                body = {"model": "tiny", "messages": LONG, "stream": stream}
                async with http.post(base + CHAT, json=body) as response:
                    return response.status, await response.read()

            await until(both)
            await gateways.healthy(base)
            async with asyncio.timeout(60):
                if not stream:
                    assert [(await ask(False))[0] for _ in range(2)] == [200, 200]
                    assert (stuck.asked, well.asked) == (1, 2)
                    return
                while not stuck.asked:
                    status, said = await ask(True)
                assert status == 200
                assert said.startswith(EVENT + b'data: {"error"')


class Draining(Engine):
    """As SGLang while it ends: it is not well any more, and computes what it has begun."""

    def __init__(self) -> None:
        super().__init__(hangs=False)
        self.looked_at = asyncio.Event()  # by a gateway, which names no agent

    async def shown(self, request: web.Request) -> web.Response:
        if "User-Agent" not in request.headers:
            self.looked_at.set()
        if self.asked and request.path == "/health":
            return web.Response(status=503)
        return await super().shown(request)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await self._over.wait()
        self.asked -= 1
        return await super().chat(request)

    def end(self) -> None:
        self._over.set()


async def test_an_engine_that_drains_ends_what_it_has_begun() -> None:
    engine = Draining()
    async with engine.served() as url, aiohttp.ClientSession() as http:
        backends = [{"url": url, "kind": "sglang"}]
        async with gateways.router([], backends=backends) as addresses, asyncio.timeout(60):
            base = f"http://{addresses['http']}"
            await gateways.healthy(base)

            async def ask() -> int:
                async with http.post(base + CHAT, json={"model": "tiny", "messages": LONG}) as response:
                    return response.status

            asking, looked = asyncio.create_task(ask()), asyncio.create_task(engine.looked_at.wait())
            await asyncio.wait((asking, looked), return_when=asyncio.FIRST_COMPLETED)
            engine.end()
            assert await asking == 200
            looked.cancel()


async def test_a_machine_that_is_gone_is_noticed_by_the_kernel() -> None:
    async with Engine(hangs=False).served() as url:
        servers = ServerPool()
        (await servers.post(url, CHAT, b"{}", {"Content-Type": "application/json"})).release(over=True)
        (connection,) = servers._all
        assert connection._transport is not None
        connected = connection._transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await servers.close()


async def test_servers_that_hang_do_not_keep_others_from_being_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are, others are asked meanwhile."""
    monkeypatch.setattr(discovery.Probe._answer, "__defaults__", (3600.0,))  # seconds
    many, asked, over = 150, set[str](), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        asked.add(request.path)
        await over.wait()
        return web.Response()

    async def all_asked() -> bool:
        return len(asked) == many

    app = web.Application()
    app.add_routes([web.get("/{server}/v1/models", hang)])
    async with TestServer(app) as server:
        async with watcher.ServerWatcher(RouterCore(Routing(), 1), time.monotonic) as watching:
            await watching.watch([Backend(url=str(server.make_url(f"/{n}"))) for n in range(many)])
            await until(all_asked)
        over.set()
