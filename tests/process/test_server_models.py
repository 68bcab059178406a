"""One server with several names and several engines: adapters as models, data-parallel ranks as workers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.servers import watcher

from tests.process import gateways
from tests.process.gateways import one_tokenizer  # noqa: F401
from tests.process.test_servers import CHAT, LONG, until

METRICS = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 1.0\n'


class Engines:
    """As vLLM shows itself: a base model, what is loaded over it, and two ranks."""

    def __init__(self) -> None:
        self.base = "base"
        self.adapters = ["poet"]
        self.asked: list[tuple[str, str | None]] = []  # model, rank
        self.adapter: str | None = None  # of the latest, in SGLang's way

    async def models(self, _: web.Request) -> web.Response:
        base = {"id": self.base, "max_model_len": 4096, "root": self.base, "parent": None}
        loaded = [{"id": name, "root": f"/{name}", "parent": self.base} for name in self.adapters]
        return web.json_response({"object": "list", "data": [base, base | {"id": "alias"}, *loaded]})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((body["model"], request.headers.get("X-data-parallel-rank")))
        self.adapter = body.get("lora_path")
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})


@asynccontextmanager
async def fleet(
    policy: str = "cheapest", **backend: Any
) -> AsyncIterator[tuple[str, Engines, aiohttp.ClientSession]]:
    engines, app = Engines(), web.Application()
    app.add_routes([web.get("/v1/models", engines.models), web.get("/metrics", engines.metrics)])
    app.add_routes([web.post(CHAT, engines.chat)])
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        backends = [{"url": str(server.make_url("")), "kind": "vllm", **backend}]
        async with gateways.router([], backends=backends, routing={"policy": policy}) as addresses:
            base = f"http://{addresses['http']}"
            await gateways.healthy(base)
            yield base, engines, http


async def ask(http: aiohttp.ClientSession, base: str, model: str) -> tuple[int, str]:
    """Status, and the worker."""
    async with http.post(base + CHAT, json={"model": model, "messages": LONG}) as response:
        return response.status, response.headers.get("X-Warmfleet-Worker", "")


async def served(http: aiohttp.ClientSession, base: str) -> set[str]:
    async with http.get(f"{base}/v1/models") as response:
        return {model["id"] for model in (await response.json())["data"]}


async def test_a_model_that_no_server_has_is_named() -> None:
    """For good: a 503 would be tried again, and what it asks for may be nothing that we know ourselves."""
    async with fleet() as (base, _, http):
        body = {"model": "bas", "messages": LONG, "structured_outputs": {"choice": ["yes"]}}
        for path in (CHAT, "/admin/explain"):
            async with http.post(base + path, json=body) as response:
                assert response.status == 404
                message = (await response.json())["error"]["message"]
                assert message == "model: 'bas' is not served here; base, alias, poet is"


async def test_adapters_are_models_and_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "MODEL_POLLS", 1)
    monkeypatch.setattr(watcher, "POLL_S", 0.02)
    async with fleet() as (base, engines, http):
        assert await served(http, base) == {"base", "alias", "poet"}
        for model in ("base", "alias", "poet"):
            assert (await ask(http, base, model))[0] == 200
        assert engines.asked == [("base", None), ("alias", None), ("poet", None)]
        engines.adapters = ["critic"]

        async def changed() -> bool:
            return (await ask(http, base, "poet"))[0] == 404

        await until(changed)


async def test_a_server_that_serves_another_model_now_is_met_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers all along: its engine was back between two polls, or it loads what it is asked for."""
    monkeypatch.setattr(watcher, "MODEL_POLLS", 3)
    monkeypatch.setattr(watcher, "POLL_S", 0.02)
    async with fleet() as (base, engines, http):
        assert (await ask(http, base, "base"))[0] == 200
        engines.base = "other"

        async def met() -> bool:
            return (await ask(http, base, "other"))[0] == 200

        await until(met)
        assert (await ask(http, base, "base"))[0] == 404


async def test_ranks_are_workers_of_their_own() -> None:
    async with fleet("round_robin", ranks=2) as (base, engines, http):

        async def both() -> bool:
            async with http.get(f"{base}/admin/workers") as response:
                workers = (await response.json())["workers"]
            return [(w["state"], w["running"]) for w in workers] == [("healthy", 3), ("healthy", 1)]

        await until(both)
        workers = [(await ask(http, base, "base"))[1] for _ in range(4)]
        ranks = [worker.rpartition("#")[2] for worker in workers]
        assert sorted(ranks) == ["0", "0", "1", "1"]
        assert [rank for _, rank in engines.asked] == ranks


@pytest.mark.parametrize(("kind", "told"), [("sglang", "poet"), ("vllm", None)])
async def test_sglang_is_told_which_adapter_is_meant(kind: str, told: str | None) -> None:
    """It answers with the model itself where only the name of a model says so."""
    async with fleet(kind=kind) as (base, engines, http):
        assert (await ask(http, base, "poet"))[0] == 200
        assert (engines.asked[-1], engines.adapter) == (("poet", None), told)
        assert (await ask(http, base, "base"))[0] == 200
        assert engines.adapter is None
