"""Sim workers inside the test's own process: real gRPC and HTTP on loopback, internals at hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from warmfleet_worker.config import Config
from warmfleet_worker.engine.factory import make_engine
from warmfleet_worker.worker import Worker


def sim_config(**settings: Any) -> Config:
    """A Config as from a TOML file; without simulated time unless ``sim`` says otherwise."""
    return msgspec.convert({"engine": "sim", "sim": {"instant": True}, **settings}, Config)


@asynccontextmanager
async def sim_worker(**settings: Any) -> AsyncIterator[Worker]:
    """A worker with its ports open: ``grpc_address``, ``http_address``, ``scheduler``, ``presence``.

    Settings are those of a configuration file, as in ``sim_worker(name="a", total_blocks=64)``.
    """
    config = sim_config(**settings)
    worker = Worker(config, make_engine(config))
    await worker.start()
    try:
        yield worker
        if not worker.loop.done():
            worker.scheduler.check_integrity(worker.exchange.leases.held())
    finally:
        await worker.close()


async def idle(worker: Worker) -> None:
    """Nothing runs, no block is pinned."""
    async with asyncio.timeout(60):
        await worker.runner.drain(60)
    worker.scheduler.draining = False
    assert worker.scheduler.cache.pool.pinned == 0
    assert worker.scheduler.requests == {}
