"""Ways of doing the same on one device: first that they agree, then what each takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear
from warmfleet_kernels import attention, fused, prefill, prepare, reference, tiled, tiles
from warmfleet_worker.engine.base import Plan, Run, Sampling, Work
from warmfleet_worker.engine.torch import TorchEngine

from tests.bars.gpu import kernels
from tests.bars.gpu.model import LLAMA_3_8B, pick
from tests.bars.gpu.timing import device_s, kernel_s, wall_s
from tests.bars.rows import Row

NEAR = 2e-2  # relative, in bf16
STEPS = {  # (tokens before, tokens) of each work
    "128 new on 32k": [(32_768, 128)],
    "256 new on 768": [(768, 256)],
    "256 new on 768, 20 decoding": [(768, 256), *[(1000, 1)] * 20],
    "2 x 224 new on 768, 60 decoding": [(768, 224), (768, 224), *[(1000, 1)] * 60],
    "512 new on 8k": [(8192, 512)],
    "64 new on 2k, 128 decoding": [(2048, 64), *[(1000, 1)] * 128],
}
SHAPES = {  # the same, of attention alone
    "128 on 32k": [(32_768, 128)],
    "256 on 16k": [(16_384, 256)],
    "512 on 8k": [(8192, 512)],
    "512 on 2k": [(2048, 512)],
    "256 on 768": [(768, 256)],
    "8 x 64 on 1k": [(1024, 64)] * 8,
    "512 on 32k": [(32_768, 512)],
}


def compare(engine: TorchEngine) -> Iterator[Row]:
    for part in (_steps, _tiles, _tilings, _prefix, _matmuls, _residuals):
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
    """Whole steps with few prompt rows: captured; kernel after kernel, over pages and over a slab."""
    graphs = engine.mixed
    ways = {"captured": (graphs, tiles.MOST_ROWS), "tiles": (None, tiles.MOST_ROWS), "slab": (None, 0)}
    for name, shapes in STEPS.items():
        plan, found = _plan(engine, shapes), {}
        for way, (mixed, most) in ways.items():
            with _set(engine, mixed=mixed), _set(tiles, MOST_ROWS=most):
                with torch.inference_mode():
                    found[way] = engine.compute(plan).clone()
                alone = wall_s(partial(engine.execute, plan), repeats=7)
                launching = _host_s(partial(engine.launch, plan))
                device = kernel_s(partial(engine.execute, plan))
            figures = (
                f"{alone * 1e3:.2f} ms alone, {launching * 1e3:.2f} launching, {device * 1e3:.2f} kernels"
            )
            yield Row("-", f"step, {name}: {way}", figures)
        apart = max(_apart(found[way], found["slab"]) for way in ("captured", "tiles"))
        yield Row("7", f"step, {name}: ways apart", f"{apart:.4f}", f"<= {NEAR}", apart <= NEAR)


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
        (8, 3, 64, 32), (8, 3, 64, 16), (8, 3, 64, 64), (8, 2, 64, 32), (8, 4, 64, 32), (8, 2, 128, 32),
        (4, 3, 64, 32), (4, 3, 32, 32), (8, 4, 32, 32),
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


def _prefix(engine: TorchEngine) -> Iterator[Row]:
    """512 new on 32k: what its parts take, and gathering with other orders to the cache."""
    pool, shapes = engine.pool, [(32_768, 512)]
    query = _query(pool, shapes)
    batch = prepare(kernels.sequences(pool, shapes), pool)
    assert batch.reads is not None
    (group,), slab = batch.reads.groups, batch.reads.slab
    assert slab is not None
    gathered: list[Callable[[], object]] = [
        partial(prefill.gather_pages, pool[:, layer], group, slab) for layer in range(8)
    ]
    attended = partial(prefill._cudnn, query, slab[:, :, :32_768], causal=False)
    own = partial(prefill._cudnn, query, slab[:, :, 32_768 : 32_768 + 512], causal=True)
    parts = [attended(), own()]
    merged = partial(prefill._merge, parts, torch.empty_like(query))
    pieces = {"gather": gathered, "cuDNN, prefix": [attended], "cuDNN, its own": [own], "merge": [merged]}
    for name, calls in pieces.items():
        yield Row("3", f"512 on 32k: {name}", f"{device_s(calls) * 1e6:.1f} us")
    plain = prefill._gather_pages
    whole = attention(pool, 0, batch, query)
    for load, store, warps, each in (
        ("", "", 4, 4), ("evict_first", "", 4, 4), ("evict_first", "evict_last", 4, 4),
        ("", "evict_last", 4, 4), ("evict_first", "", 4, 1), ("evict_first", "", 4, 2),
        ("evict_first", "", 4, 8), ("evict_first", "", 8, 4), ("evict_first", "", 2, 4),
    ):  # fmt: skip
        with _set(prefill, _gather_pages=_Gather(load, store, warps, each)):
            found = attention(pool, 0, batch, query)
            alone = device_s(gathered, repeats=30)
            calls = [partial(attention, pool, layer, batch, query) for layer in range(8)]
            took = device_s(calls, repeats=30)
        assert torch.equal(found, whole), "another gather, other keys"
        what = f"loads {load or 'plain'}, stores {store or 'plain'}, {warps} warps, {each} pieces"
        yield Row(
            "3", f"512 on 32k: gather, {what}", f"{alone * 1e6:.1f} us, {took * 1e6:.1f} with attention"
        )
    assert prefill._gather_pages is plain


class _Gather:
    """Stands where the kernel does."""

    def __init__(self, load: str, store: str, warps: int, each: int) -> None:
        self._way = {"LOAD": load, "STORE": store, "PIECES": each, "num_warps": warps}

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., object]:
        def call(*args: object, PIECES: int, num_warps: int, **sizes: int) -> object:
            pieces = grid[1] * PIECES // int(self._way["PIECES"])
            return _gather_kernel[(grid[0], pieces)](*args, **sizes, **self._way)

        return call


@triton.jit
def _gather_kernel(
    pages, table, slab, stride_block, stride_piece,
    PIECES: tl.constexpr, WORDS: tl.constexpr, SPAN: tl.constexpr, LOAD: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    source = tl.load(table + block).to(tl.int64)
    i = tl.arange(0, SPAN)
    for n in tl.static_range(PIECES):
        piece = tl.program_id(1).to(tl.int64) * PIECES + n
        word = tl.load(
            pages + source * stride_block + piece * WORDS + i, mask=i < WORDS, eviction_policy=LOAD
        )
        tl.store(slab + piece * stride_piece + block * WORDS + i, word, mask=i < WORDS, eviction_policy=STORE)


def _matrices() -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's products."""
    config = LLAMA_3_8B
    wide = config.heads * config.head_dim
    shared = 2 * config.kv_heads * config.head_dim
    return {
        "qkv": (wide + shared, config.hidden),
        "output": (config.hidden, wide),
        "gate and up": (2 * config.intermediate, config.hidden),
        "down": (config.hidden, config.intermediate),
    }


def _matmuls(engine: TorchEngine) -> Iterator[Row]:
    """A layer's products under lasting load, by library."""
    for rows in (2048, 8192):
        for name, (out, width) in _matrices().items():
            x = torch.randn((rows, width), dtype=torch.bfloat16, device="cuda")
            w = torch.randn((out, width), dtype=torch.bfloat16, device="cuda") * width**-0.5
            flops, figures = 2 * rows * out * width, []
            many = int(0.12 * 650e12 / flops)
            for library in ("cublas", "cublaslt"):
                torch.backends.cuda.preferred_blas_library(library)
                took = wall_s(
                    lambda x=x, w=w, many=many: [linear(x, w) for _ in range(many)], repeats=2, warm=1
                )
                figures.append(f"{library} {many * flops / took / 1e12:.0f}")
            torch.backends.cuda.preferred_blas_library("default")
            yield Row("1", f"{rows} rows times {name}, lasting load", f"{', '.join(figures)} TFLOP/s")


def _residuals(engine: TorchEngine) -> Iterator[Row]:
    """The residual added by the product, against by the norm behind it."""
    config = LLAMA_3_8B
    weight = torch.ones(config.hidden, dtype=torch.bfloat16, device="cuda")
    for rows in (1, 64, 256, 512, 2048, 8192):
        for name in ("output", "down"):
            out, width = _matrices()[name]
            # as many as do not fit into the cache: a step reads each weight once
            ws = [
                torch.randn((out, width), dtype=torch.bfloat16, device="cuda") * width**-0.5 for _ in range(6)
            ]
            x = torch.randn((rows, width), dtype=torch.bfloat16, device="cuda")
            hidden = torch.randn((rows, out), dtype=torch.bfloat16, device="cuda")
            kept = hidden.clone()

            def apart(w: Tensor, x: Tensor = x, hidden: Tensor = kept) -> tuple[Tensor, Tensor]:
                return fused.add_rms_norm(hidden, linear(x, w), weight, 1e-5)

            def added(w: Tensor, x: Tensor = x, hidden: Tensor = hidden) -> tuple[Tensor, Tensor]:
                hidden.addmm_(x, w.t())
                return fused.add_rms_norm(hidden, None, weight, 1e-5)

            exact = reference.add_rms_norm(
                kept.double(), x.double() @ ws[0].double().t(), weight.double(), 1e-5
            )
            errors = [_apart(way(ws[0])[1], exact[1]) for way in (apart, added)]
            times = [device_s([partial(way, w) for w in ws], repeats=24) for way in (apart, added)]
            figures = f"{times[0] * 1e6:.1f} us apart, {times[1] * 1e6:.1f} added; "
            figures += f"errors {errors[0]:.4f}, {errors[1]:.4f}"
            yield Row("1", f"{rows} rows times {name}, the sum, its norm", figures)
