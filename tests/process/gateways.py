"""A router and gateways inside the test's own process, over sim workers: real HTTP and gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import aiohttp
import msgspec
import pytest
from warmfleet_router import app as router_app
from warmfleet_router import program
from warmfleet_router.config import GatewayConfig, RouterConfig
from warmfleet_router.gateway import app as gateway_app
from warmfleet_router.prompt import tokenizer

from tests.model import demo_model_path

VOCAB_SIZE = 49152  # of the demo model's tokenizer
SIM = {"instant": True, "vocab_size": VOCAB_SIZE}
ANY = "127.0.0.1:0"

load_once = cache(tokenizer.load)


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the demo model's vocabulary takes half a second: once is enough."""
    monkeypatch.setattr(program.tokenizer, "load", load_once)


@asynccontextmanager
async def router(workers: Sequence[str], **settings: Any) -> AsyncIterator[dict[str, str]]:
    """Addresses of a router with its gateway; settings as in its configuration file."""
    given = {"http": ANY, "listen": ANY, "model": str(demo_model_path()), "workers": list(workers)}
    config = msgspec.convert(given | {"limits": {"drain_s": 1.0}} | settings, RouterConfig)
    async with router_app.running(config) as addresses:
        yield addresses


@asynccontextmanager
async def gateway(router: str, **settings: Any) -> AsyncIterator[dict[str, str]]:
    """Addresses of a gateway of its own before the router at ``router`` (gRPC)."""
    given = {"http": ANY, "router": router, "model": str(demo_model_path())}
    config = msgspec.convert(given | {"limits": {"drain_s": 1.0}} | settings, GatewayConfig)
    async with gateway_app.running(config) as addresses:
        yield addresses


async def healthy(base: str) -> None:
    """Waits until a gateway has a worker."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{base}/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)
