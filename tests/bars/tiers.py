"""The tiers of a worker: TTFT of a 1,000-token prefix by where it lies, and what a disk in trouble costs.

The real model on the CPU, at the worker's own port. Trouble: every system call of the disk tier takes half a
second, or fails, beside a worker without tiers.
"""

import asyncio
import errno
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from warmfleet_worker.config import Config
from warmfleet_worker.engine.factory import make_engine
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.rows import Row
from tests.process.fleet import sim_worker
from tests.process.gateway import Stream, stream, stub_of
from tests.process.test_tiers import HOST, disk, settled
from tests.process.test_tiers_restart import REAL, real_worker

PREFIX, NEW, ROUNDS = 1008, 60, 3
ASKED = 300  # requests a kind of trouble

_rng = np.random.default_rng(11)


def main() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="warmfleet-bar-") as folder:
        return [*asyncio.run(_by_tier(Path(folder) / "kv")), *asyncio.run(_trouble(Path(folder)))]


async def _by_tier(folder: Path) -> list[Row]:
    engine = make_engine(msgspec.convert(REAL | {"total_blocks": 200}, Config))
    assert isinstance(engine, TorchEngine)
    tiers = {"disk_path": str(folder), "disk_bytes": 4 << 30, "host_bytes": 1 << 30, "total_blocks": 200}
    taken: dict[str, list[float]] = {name: [] for name in ("cold", "device", "host", "disk")}
    prefixes = [_tokens(PREFIX) for _ in range(ROUNDS + 1)]
    async with real_worker(engine, **tiers) as (worker, gateway):
        handles = itertools.count(1)
        for i, prefix in enumerate(prefixes):  # the first warms the process up
            for name in ("cold", "device", "host"):
                if name == "host":
                    cache = worker.scheduler.cache
                    cache.release(cache.allocate(cache.available) or [])
                seconds = await _ask(gateway, next(handles), prefix, name)
                await settled(worker)
                taken[name] += [seconds] if i else []
    async with real_worker(engine, **tiers) as (worker, gateway):
        for handle, prefix in enumerate(prefixes, 1):
            seconds = await _ask(gateway, handle, prefix, "disk")
            await settled(worker)
            taken["disk"] += [seconds] if handle > 1 else []
    cold = statistics.median(taken["cold"])
    return [
        Row("5.3", f"TTFT, {PREFIX} + {NEW} tokens, CPU, {name}", f"{1e3 * m:.0f} ms, {m / cold:.3f}x cold")
        for name, m in ((name, statistics.median(each)) for name, each in taken.items())
    ]


def _tokens(count: int) -> list[int]:
    return [int(n) for n in _rng.integers(100, 40_000, count)]


async def _ask(gateway: Stream, handle: int, prefix: list[int], tier: str) -> float:
    """Seconds to the first token, as the client sees them; raises unless the prefix came from ``tier``."""
    gateway.patience_s = 60
    began = time.perf_counter()
    await gateway.submit(handle, [*prefix, *_tokens(NEW)], 1)
    await gateway.finish(handle)
    taken = time.perf_counter() - began
    started = gateway.started[handle]
    came = {"cold": 0, "device": PREFIX, "host": started.host_tokens, "disk": started.disk_tokens}[tier]
    if (started.cached_tokens, came) != ((0, 0) if tier == "cold" else (PREFIX, PREFIX)):
        raise RuntimeError(f"{tier}: {started}")
    return taken


# ---- trouble -------------------------------------------------------------------------------------


async def _trouble(folder: Path) -> list[Row]:
    kinds: dict[str, Callable[[], Any]] = {
        "slow (500 ms)": lambda: time.sleep(0.5),
        "full": lambda: _raise(errno.ENOSPC),
        "read-only": lambda: _raise(errno.EROFS),
    }
    rows = []
    for name, trouble in kinds.items():
        own = folder / str(len(rows))
        await _fill(own)
        alone, with_disk = await _p99s(own, trouble)
        shown = f"{with_disk / alone:.2f}x ({1e3 * with_disk:.0f} ms, {1e3 * alone:.0f} ms without tiers)"
        rows.append(Row("5.F11", f"TTFT p99, disk {name}", shown, "<= 1.1x", with_disk <= 1.1 * alone))
    return rows


async def _fill(folder: Path) -> None:
    async with sim_worker(**disk(folder)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for number in range(ASKED):
            await gateway.submit(number + 1, [number, *range(1000, 1032)], 1)
            await gateway.finish(number + 1)
        await settled(worker)


async def _p99s(folder: Path, trouble: Callable[[], Any]) -> list[float]:
    """Without tiers and with a disk in trouble: requests in turn, each for a prefix that the disk holds."""
    settings = [{key: value for key, value in HOST.items() if key != "host_bytes"}, disk(folder)]
    taken: list[list[float]] = [[], []]
    async with AsyncExitStack() as stack:
        gateways = []
        for each in settings:
            worker = await stack.enter_async_context(sim_worker(**each))
            worker.scheduler.fetching.pace.token_s = 0.002  # as one that has computed before
            stub = await stack.enter_async_context(stub_of(worker))
            gateways.append(await stack.enter_async_context(stream(stub)))
        with _troubled(trouble):
            for number, (gateway, times) in itertools.product(
                range(ASKED), zip(gateways, taken, strict=True)
            ):
                await gateway.submit(number + 1, [number, *range(1000, 1032)], 1)
                await gateway.finish(number + 1)
                started = gateway.started[number + 1]
                times.append(started.queue_s + started.prefill_s)
    return [statistics.quantiles(times, n=100)[98] for times in taken]


def _raise(number: int) -> None:
    raise OSError(number, os.strerror(number))


@contextmanager
def _troubled(trouble: Callable[[], Any]) -> Iterator[None]:
    calls = {name: getattr(os, name) for name in ("preadv", "pwritev")}

    def wrapped(call: Callable[..., int]) -> Callable[..., int]:
        def troubled(*arguments: Any) -> int:
            trouble()
            return call(*arguments)

        return troubled

    for name, call in calls.items():
        setattr(os, name, wrapped(call))
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(os, name, call)
