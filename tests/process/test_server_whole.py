"""Embeddings, rankings and the like, which only servers that are not ours make."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.servers.ask import WHOLE

from tests.process import gateways
from tests.process.fleet import sim_worker
from tests.process.test_servers import until

DOCUMENTS = ["a river " * 40, "a mountain " * 40]


class Embedder:
    """As vLLM with a pooling model: it remembers what it was sent."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.says: bytes | None = None  # in place of an object

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self.models)])
        app.add_routes([web.post(path, self.answer) for path in WHOLE])
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "embedder", "max_model_len": 4096}]})

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.read()))
        if self.says is not None:
            return web.Response(body=self.says, content_type="application/octet-stream")
        return web.json_response({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 7}})


@asynccontextmanager
async def fleet(
    own: list[str] | None = None,
) -> AsyncIterator[tuple[str, list[Embedder], aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        servers, backends = [Embedder() for _ in range(3)], []
        for server in servers:
            listening = await stack.enter_async_context(TestServer(server.app()))
            backends.append({"url": str(listening.make_url(""))})
        addresses = await stack.enter_async_context(gateways.router(own or [], backends=backends))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        base = f"http://{addresses['http']}"
        await gateways.healthy(base)

        async def all_there() -> bool:
            async with http.get(f"{base}/admin/workers") as response:
                return bool((await response.json())["fleet"]["healthy"] == 3 + len(own or []))

        await until(all_there)
        yield base, servers, http


@pytest.mark.parametrize("path", WHOLE)
async def test_they_are_passed_on_as_they_are(path: str) -> None:
    """And again to whoever has computed the same before."""
    body: dict[str, Any] = {"model": "embedder", "query": "what is high?", "documents": DOCUMENTS, "top_n": 1}
    async with fleet() as (base, servers, http):
        for _ in range(4):
            async with http.post(base + path, json=body) as response:
                assert response.status == 200
                assert (await response.json())["data"] == [{"embedding": [0.5]}]
        (asked,) = [server.asked for server in servers if server.asked]
        assert [where for where, _ in asked] == [path] * 4
        assert [json.loads(sent) for _, sent in asked] == [body] * 4
        async with http.get(f"{base}/admin/workers") as response:
            assert (await response.json())["fleet"]["bookings"] == 0


@pytest.mark.parametrize("says", [b'[{"score": 0.5, "index": 0}]', bytes(range(256))])
async def test_an_answer_need_not_be_an_object(says: bytes) -> None:
    """SGLang's rankings are lists, and vLLM's embeddings may be numbers as a machine has them."""
    async with fleet() as (base, servers, http):
        for server in servers:
            server.says = says
        async with http.post(base + "/v1/rerank", json={"model": "embedder", "query": "x"}) as response:
            assert (response.status, await response.read()) == (200, says)
            assert response.content_type == "application/octet-stream"
        async with http.get(f"{base}/admin/workers") as response:
            assert not any(worker["dropped"] for worker in (await response.json())["workers"])


async def test_our_own_workers_make_none() -> None:
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(sim_worker(name="w0", served_name="tiny"))
        base, _, http = await stack.enter_async_context(fleet([worker.grpc_address]))
        for model, says in (("tiny", "no server of the model answers /v1/embeddings"), ("other", "other")):
            body = {"model": model, "input": "hello"}
            async with http.post(base + "/v1/embeddings", json=body) as response:
                assert response.status == 404
                assert says in (await response.json())["error"]["message"]
