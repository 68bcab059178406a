"""Pulls that the router orders by itself: a real router, gateway and two sim workers in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from warmfleet_router.app import running
from warmfleet_router.config import RouterConfig
from warmfleet_router.routing import Routing
from warmfleet_worker.worker import Worker

from tests.model import demo_model_path
from tests.process.exchange import FLEET_KEY, ONE_STEP, giving
from tests.process.gateway import stream, stub_of

ANY = "127.0.0.1:0"
PREFIX = (
    "You know every river and every bridge of Europe, and you tell of them at length. " * 40
)  # 800 tokens
SIM = {"vocab_size": 49_152, "timing": {"prefill_token_s": 5e-4, "step_s": 1e-3}}  # .4 s for the prefix


@dataclass
class Running:
    workers: dict[str, Worker]
    http: aiohttp.ClientSession
    times_busy: int = 0

    async def ask(self, question: str) -> str:
        """Who answered."""
        body = {"model": "sim", "max_tokens": 2, "messages": [{"role": "system", "content": PREFIX}]}
        body["messages"].append({"role": "user", "content": question})  # type: ignore[attr-defined]
        async with self.http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            return str(response.headers["X-Warmfleet-Worker"])

    async def pulls(self) -> list[dict[str, Any]]:
        async with self.http.get("/admin/pulls") as response:
            shown: list[dict[str, Any]] = (await response.json())["pulls"]
            return shown

    @asynccontextmanager
    async def busy(self, name: str) -> AsyncIterator[None]:
        """A worker that computes prompts of somebody else's, new ones each time, and has told its router."""
        self.times_busy += 1
        async with stub_of(self.workers[name]) as stub, stream(stub, f"other-{self.times_busy}") as other:
            for handle in range(1, 5):
                first = handle * 3000 + self.times_busy
                await other.submit(handle, range(first, first + 2500), 1)
            await self._heard(name)
            yield
            for handle in range(1, 5):
                await other.send(cancel={"handle": handle})
                await other.end(handle)

    async def _heard(self, name: str) -> None:
        async with asyncio.timeout(60):
            while True:
                async with self.http.get("/admin/workers") as response:
                    shown = {w["worker"]: w for w in (await response.json())["workers"]}
                if shown[name]["running"] + shown[name]["waiting"] > 1:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(
    tmp_path: Path, key: bool = True, routing: dict[str, Any] | None = None, **transfer: Any
) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        workers = {}
        for name in ("a", "b"):
            made = giving(tmp_path, name, sim=SIM, transfer=transfer, chunk_tokens=ONE_STEP)
            workers[name] = await stack.enter_async_context(made)
        path = tmp_path / "fleet.key"
        path.write_text(FLEET_KEY.hex())
        config = RouterConfig(
            http=ANY,
            listen=ANY,
            model=str(demo_model_path()),
            workers=[worker.grpc_address for worker in workers.values()],
            fleet_key_file=str(path) if key else "",
            routing=Routing(**routing or {}),
        )
        addresses = await stack.enter_async_context(running(config))
        http = aiohttp.ClientSession(f"http://{addresses['http']}")
        made = Running(workers, await stack.enter_async_context(http))
        async with asyncio.timeout(60):
            while (await made.http.get("/health")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield made


async def test_it_pulls_from_a_busy_holder_and_says_so(tmp_path: Path) -> None:
    async with fleet(tmp_path) as made:
        holder = await made.ask("Which river is the longest?")
        assert await made.ask("Which bridge is the oldest?") == holder, "an idle holder serves"
        assert await made.pulls() == []
        async with made.busy(holder):
            other = await made.ask("Which bridge is the highest?")
        assert other != holder
        (moved,) = await made.pulls()
        assert (moved["source"], moved["target"], moved["pulls"]) == (holder, other, 1)
        assert moved["tokens"] > 700
        assert moved["failures"] == {}
        assert moved["saved_prefill_s"] > 0
        size = made.workers[other].runner.engine.block_bytes
        assert moved["bytes"] == moved["tokens"] // 16 * size


async def test_it_learns_that_a_link_is_slow_and_computes(tmp_path: Path) -> None:
    """A block a second: pulling the prefix would take most of a minute, computing it .4 s."""
    async with fleet(tmp_path, bytes_per_s=128.0) as made:
        holder = await made.ask("Which river is the longest?")
        async with made.busy(holder):
            await made.ask("Which bridge is the highest?")
        (first,) = await made.pulls()
        assert first["failures"] == {"given_up": 1}
        for number in (1, 2):
            prefix = PREFIX[number:]
            holder = await asked_with(made, prefix, "Which river is the longest?")
            async with made.busy(holder):
                await asked_with(made, prefix, "Which bridge is the highest?")
        pairs = await made.pulls()
        assert {pair["pulls"] for pair in pairs} == {1}, "none since the link was known"


async def asked_with(made: Running, prefix: str, question: str) -> str:
    body = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": prefix + question}]}
    async with made.http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        return str(response.headers["X-Warmfleet-Worker"])


async def test_without_a_key_nobody_pulls(tmp_path: Path) -> None:
    async with fleet(tmp_path, key=False) as made:
        holder = await made.ask("Which river is the longest?")
        async with made.busy(holder):
            await made.ask("Which bridge is the highest?")
        assert await made.pulls() == []
        assert all(worker.exchange.service.lent == 0 for worker in made.workers.values())
