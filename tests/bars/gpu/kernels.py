"""Bars 3 and 5: attention over pages, and whole blocks moved."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from warmfleet_kernels import Rotation, Segment, Sequence, attention, prepare
from warmfleet_kernels.movement import SumConstants, gather_blocks, scatter_blocks
from warmfleet_proto import checksum

from tests.bars.gpu.model import pick
from tests.bars.gpu.timing import Ceilings, device_s
from tests.bars.rows import Row

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16
LAYER_TOKEN_BYTES = 2 * 2 * KV_HEADS * DIM


def paged(pool: Tensor, ceilings: Ceilings) -> Iterator[Row]:
    """``pool`` is an engine's, of at least 64 x 8k tokens."""
    yield from _decode(pool, ceilings)
    yield from _layouts(pool, ceilings)


def sequences(pool: Tensor, shapes: list[tuple[int, int]], runs: int = 1) -> list[Sequence]:
    taken = iter(pick(5, len(pool), sum(-(-(s + c) // BLOCK) for s, c in shapes)))
    made, first = [], 0
    for start, count in shapes:
        blocks = [next(taken) for _ in range(-(-(start + count) // BLOCK))]
        size = -(-len(blocks) // runs)
        parts = [tuple(blocks[at : at + size]) for at in range(0, len(blocks), size)]
        segments = tuple(Segment(part, _turn(n) if n else None) for n, part in enumerate(parts))
        made.append(Sequence(first, count, start, segments))
        first += count
    return made


def _turn(delta: int) -> Rotation:
    angle = torch.linspace(0, float(delta), DIM // 2)[None]
    return Rotation(angle.cos(), angle.sin())


def layers(pool: Tensor, shapes: list[tuple[int, int]], runs: int = 1) -> list[Callable[[], object]]:
    query = torch.randn((sum(c for _, c in shapes), HEADS, DIM), dtype=pool.dtype, device="cuda")
    batch = prepare(sequences(pool, shapes, runs), pool)
    return [partial(attention, pool, layer, batch, query) for layer in range(8)]


def _decode(pool: Tensor, ceilings: Ceilings) -> Iterator[Row]:
    for rows, context in ((64, 8192), (256, 2048), (64, 512), (1, 512), (1, 32768)):
        took = device_s(layers(pool, [(context - 1, 1)] * rows))
        share = rows * context * LAYER_TOKEN_BYTES / took / ceilings.copy
        wanted = ">= .85" if (rows, context) == (64, 8192) else ""
        what = f"paged decode, batch {rows}, context {context}"
        yield Row("3", what, f"{share:.3f} of copy ({took * 1e6:.0f} us)", wanted, share >= 0.85)
    one = device_s(layers(pool, [(8191, 1)] * 64))
    for runs in (2, 8):
        took = device_s(layers(pool, [(8191, 1)] * 64, runs))
        yield Row(
            "3",
            f"paged decode, batch 64, context 8192: {runs} runs with deltas",
            f"{took / one:.2f} x one run",
        )


def _layouts(pool: Tensor, ceilings: Ceilings) -> Iterator[Row]:
    blocks, depth = pool.shape[:2]
    major = pool.view(depth, blocks, *pool.shape[2:]).transpose(0, 1)
    for name, each in (("block-major", pool), ("layer-major", major)):
        took = device_s(layers(each, [(8191, 1)] * 64))
        share = 64 * 8192 * LAYER_TOKEN_BYTES / took / ceilings.copy
        yield Row("3", f"paged decode, batch 64, context 8192, {name}", f"{share:.3f} of copy")


def prefix(pool: Tensor) -> Iterator[Row]:
    count, start = 512, 32_768
    query = torch.randn((1, HEADS, count, DIM), dtype=pool.dtype, device="cuda")
    key, value = torch.randn((2, 1, KV_HEADS, start + count, DIM), dtype=pool.dtype, device="cuda")
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        contiguous = device_s([lambda: scaled_dot_product_attention(query, key, value, enable_gqa=True)])
    for runs in (1, 2, 8):
        ours = device_s(layers(pool, [(start, count)], runs))
        what = f"{count} new on {start} cached, {runs} run(s): contiguous SDPA over ours"
        share = contiguous / ours
        wanted = ">= .85" if runs == 1 else ""
        yield Row("3", what, f"{share:.3f} ({ours * 1e3:.3f} ms a layer)", wanted, share >= 0.85)


def movement(ceilings: Ceilings) -> Iterator[Row]:
    for count, size in ((4096, 65_536), (128, 2 << 20)):
        pool = torch.randint(-(2**31), 2**31 - 1, (6 * count, size // 4), dtype=torch.int32, device="cuda")
        slabs = [torch.empty_like(pool[:count]) for _ in range(3)]
        tables = [torch.randperm(len(pool), device="cuda")[:count].int() for _ in range(6)]
        parts = checksum.keys(), checksum.rungs(checksum.rows_of(size))
        constants = SumConstants(*(torch.from_numpy(part.view("int64")).cuda() for part in parts))
        for summed in (None, constants):
            gathers = [partial(gather_blocks, pool, tables[n], slabs[n % 3], summed) for n in range(6)]
            scatters = [partial(scatter_blocks, slabs[n % 3], pool, tables[n], summed) for n in range(6)]
            for name, calls in (("gather", gathers), ("scatter", scatters)):
                share = 2 * count * size / device_s(calls) / ceilings.copy
                what = f"{name} {count} x {size >> 10} KiB{', with the sum' if summed else ''}"
                yield Row("5", what, f"{share:.3f} of copy", ">= .8", share >= 0.8)
