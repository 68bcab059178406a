"""What a gateway's /health tells a load balancer: whether anything can be served now."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest
from warmfleet_router.gateway import service

from tests.process.fleet import sim_worker
from tests.process.gateways import SIM, gateway, healthy, one_tokenizer, router

__all__ = ["one_tokenizer"]


async def says(base: str, state: str) -> None:
    """Waits until it does."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{base}/health") as response:
                if await response.json() == {"status": state}:
                    assert response.status == (200 if state == "ok" else 503)
                    return
            await asyncio.sleep(0.02)


async def test_it_follows_workers_and_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BOOKING_HEARTBEAT_S", 0.05)
    async with AsyncExitStack() as stack:
        async with sim_worker(name="a", sim=SIM) as worker:
            place = worker.grpc_address
            main = await stack.enter_async_context(router([place]))
            there = await stack.enter_async_context(AsyncExitStack())
            other = await there.enter_async_context(router([place]))
            apart = await stack.enter_async_context(gateway(other["grpc"]))
            bases = [f"http://{main['http']}", f"http://{apart['http']}"]
            for base in bases:
                await healthy(base)
        for base in bases:
            await says(base, "waiting for a worker")
        async with sim_worker(name="a", sim=SIM, listen=place):
            for base in bases:
                await says(base, "ok")
            await there.aclose()
            await says(bases[1], "waiting for a router")
            await says(bases[0], "ok")
