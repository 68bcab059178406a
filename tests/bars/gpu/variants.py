"""Ways of doing the same on one device: first that they agree, then what each takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from warmfleet_kernels import attention, prefill, prepare, tiled, tiles
from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.gpu import kernels
from tests.bars.gpu.model import pick
from tests.bars.gpu.timing import device_s, kernel_s, wall_s
from tests.bars.rows import Row

NEAR = 2e-2  # relative, in bf16
STEPS = {  # (tokens before, tokens) of each work
    "128 new on 32k": [(32_768, 128)],
    "256 new on 768, 20 decoding": [(768, 256), *[(1000, 1)] * 20],
    "512 new on 8k": [(8192, 512)],
    "512 new on 16k": [(16_384, 512)],
}
SHAPES = {  # the same, of attention alone
    "128 on 64k": [(65_536, 128)],
    "256 on 32k": [(32_768, 256)],
    "512 on 16k": [(16_384, 512)],
    "128 on 32k": [(32_768, 128)],
    "512 on 8k": [(8192, 512)],
    "512 on 2k": [(2048, 512)],
    "256 on 768": [(768, 256)],
}


def compare(engine: TorchEngine) -> Iterator[Row]:
    for part in (_steps, _tiles, _tilings, _beside):
        began = time.perf_counter()
        try:
            yield from part(engine)
        except Exception as error:
            yield Row("-", part.__name__, f"failed: {error!r:.300}", "to end", ok=False)
        print(f"-- variants{part.__name__}: {time.perf_counter() - began:.1f} s", flush=True)


@contextmanager
def _set(module: Any, **values: Any) -> Iterator[None]:
    old = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(module, name, value)


def _apart(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def _steps(engine: TorchEngine) -> Iterator[Row]:
    """Whole steps with few prompt rows: captured, over pages, and kernel after kernel over a slab."""
    for name, shapes in STEPS.items():
        plan = _plan(engine, shapes)
        for way, mixed, most in (("captured", engine.mixed, tiles.MOST_ROWS), ("slab", None, 0)):
            with _set(engine, mixed=mixed), _set(tiles, MOST_ROWS=most, _PAIRS=1 << 40):
                alone = wall_s(partial(engine.execute, plan), repeats=7)
                launching = _host_s(partial(engine.launch, plan))
                device = kernel_s(partial(engine.execute, plan))
            figures = (
                f"{alone * 1e3:.2f} ms alone, {launching * 1e3:.2f} launching, {device * 1e3:.2f} kernels"
            )
            yield Row("-", f"step, {name}: {way}", figures)


def _plan(engine: TorchEngine, shapes: Sequence[tuple[int, int]]) -> Plan:
    counts = [-(-(start + count) // 16) for start, count in shapes]
    blocks = iter(pick(11, engine.total_blocks, sum(counts)))
    works = []
    for (start, count), held in zip(shapes, counts, strict=True):
        run = Run(tuple(next(blocks) for _ in range(held)))
        works.append(Work(tuple(range(9, 9 + count)), start, (run,), b"", Sampling()))
    return Plan(tuple(works))


def _host_s(launch: Callable[[], Callable[[], object]]) -> float:
    """Median seconds that launching takes the host, the device idle."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        finish = launch()
        times.append(time.perf_counter() - began)
        finish()
    return sorted(times)[2]


def _attended(pool: Tensor, shapes: list[tuple[int, int]], query: Tensor) -> list[Callable[[], Tensor]]:
    batch = prepare(kernels.sequences(pool, shapes), pool)
    return [partial(attention, pool, layer, batch, query) for layer in range(8)]


def _query(pool: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    return torch.randn((sum(c for _, c in shapes), 32, 128), dtype=pool.dtype, device="cuda")


def _tiles(engine: TorchEngine) -> Iterator[Row]:
    """Attention over pages against a slab."""
    for name, shapes in SHAPES.items():
        query, found, took = _query(engine.pool, shapes), [], []
        for most in (1 << 20, 0):
            with _set(tiles, MOST_ROWS=most, _PAIRS=1 << 40):
                calls = _attended(engine.pool, shapes, query)
            found.append(calls[0]())
            took.append(device_s(calls))
        figures = f"{took[0] * 1e6:.0f} us over pages, {took[1] * 1e6:.0f} over a slab"
        yield Row("-", f"attention, {name}", figures)
        apart = _apart(*found)
        yield Row("7", f"attention, {name}: apart", f"{apart:.4f}", f"<= {NEAR}", apart <= NEAR)


def _tilings(engine: TorchEngine) -> Iterator[Row]:
    """Shapes of the kernel over pages."""
    for warps, stages, keys, target in (
        (8, 2, 128, 66), (8, 3, 64, 66), (4, 3, 64, 66), (8, 2, 128, 33), (8, 2, 128, 99),
    ):  # fmt: skip
        figures = []
        for name in ("128 on 32k", "512 on 2k", "256 on 768"):
            shapes = SHAPES[name]
            query = _query(engine.pool, shapes)
            with _set(tiled, _WARPS=warps, _STAGES=stages, _KEYS=keys), _set(tiles, _TARGET=target):
                took = device_s(_attended(engine.pool, shapes, query), repeats=12)
            figures.append(f"{name} {took * 1e6:.0f} us")
        yield Row(
            "-",
            f"over pages, {warps} warps, {stages} stages, {keys} keys, {target} units",
            ", ".join(figures),
        )


def _beside(engine: TorchEngine) -> Iterator[Row]:
    """A chunk's own keys behind its prefix, and beside it."""
    for start, count in ((32_768, 512), (32_768, 1024), (24_576, 8192)):
        query, found, took = _query(engine.pool, [(start, count)]), [], []
        for narrow in (0, 8192):
            with _set(tiles, MOST_ROWS=0), _set(prefill, _NARROW=narrow):
                calls = _attended(engine.pool, [(start, count)], query)
                found.append(calls[0]())
                took.append(device_s(calls))
        figures = f"{took[0] * 1e6:.0f} us in turn, {took[1] * 1e6:.0f} side by side"
        same = torch.equal(*found)
        yield Row("3", f"{count} on {start}", f"{figures}; equal: {same}", "equal", same)
