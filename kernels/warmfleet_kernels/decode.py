"""Paged decode attention, split over the keys (flash decoding). Triton.

A *split* is one query row and a range of pages that it attends to, all of it: rows, runs with deltas and
long contexts are all just lists of splits. Partial results are merged by their log-sum-exp. One program a
(split, KV head): .97 to .99 of the copy rate of an H200 at batch 64 and 8k tokens (LOG.md).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from warmfleet_kernels.tiled import ROWS, Tiles, attend_tiles

TILE = 64  # tokens read at once
_MERGED = 16  # splits merged at once


class Splits(NamedTuple):
    """Splits of ``outputs`` rows; the results of output i are ``bounds[i]`` to ``bounds[i + 1]``: splits, and
    behind all of them what tiles yield.

    All int32. A split without tokens is skipped, an output without results is 0.
    """

    table: Tensor  # [pages]: block numbers, whatever they belong to
    rows: Tensor  # [splits]: of the queries
    firsts: Tensor  # [splits]: into the table
    tokens: Tensor  # [splits]
    bounds: Tensor  # [outputs + 1]
    targets: Tensor  # [outputs]: rows of the result


def decode(pages: Tensor, queries: Tensor, splits: Splits, out: Tensor, tiles: Tiles | None = None) -> None:
    """Attention of ``queries[rows, heads, head_dim]`` over ``pages`` into rows of ``out`` (same width).

    ``pages`` is one layer of a pool, ``[blocks, 2, kv_heads, block_size, head_dim]``. Softmax in float32,
    scaled by head_dim ** -0.5.
    """
    heads, head_dim = queries.shape[1:]
    results = len(splits.rows)
    if tiles is not None:
        results += len(tiles.rows) * ROWS
    partial = queries.new_empty((results, heads, head_dim), dtype=torch.float32)
    lse = queries.new_empty((results, heads), dtype=torch.float32)  # base 2
    if len(splits.rows):
        _attend_splits(pages, queries, splits, partial, lse)
    if tiles is not None:
        attend_tiles(pages, queries, splits.table, tiles, partial, lse)
    _merge[(len(splits.targets), heads)](
        partial,
        lse,
        splits.bounds,
        splits.targets,
        out,
        HEADS=heads,
        HEAD_DIM=head_dim,
        DIM=_dim(head_dim),
        MERGED=_MERGED,
        num_warps=1,
    )


def _dim(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


def _attend_splits(pages: Tensor, queries: Tensor, splits: Splits, partial: Tensor, lse: Tensor) -> None:
    _, _, kv_heads, block_size, head_dim = pages.shape
    group = queries.shape[1] // kv_heads
    wide = pages.dtype == torch.float32
    _attend[(len(splits.rows), kv_heads)](
        queries,
        pages,
        splits.table,
        splits.rows,
        splits.firsts,
        splits.tokens,
        partial,
        lse,
        head_dim**-0.5 * 1.4426950408889634,  # log2(e): the kernel uses exp2
        pages.stride(0),
        pages.stride(1),
        pages.stride(2),
        KV_HEADS=kv_heads,
        GROUP=group,
        QUERIES=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        DIM=_dim(head_dim),
        BLOCK=block_size,
        TILE=TILE // 2 if wide else TILE,
        num_warps=4,
        num_stages=2 if wide else 3,
    )


@triton.jit
def _attend(
    queries,
    pages,
    table,
    rows,
    firsts,
    tokens,
    out,
    lse,
    scale,
    stride_block,
    stride_value,
    stride_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    count = tl.load(tokens + split)
    if count == 0:
        return
    row = tl.load(rows + split).to(tl.int64)
    first = tl.load(firsts + split)
    head = tl.arange(0, QUERIES)
    d = tl.arange(0, DIM)
    n = tl.arange(0, TILE)
    real = (head[:, None] < GROUP) & (d[None, :] < HEAD_DIM)
    place = (row * KV_HEADS * GROUP + kv_head * GROUP + head[:, None]) * HEAD_DIM + d[None, :]
    query = tl.load(queries + place, mask=real, other=0.0)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, DIM], tl.float32)
    base = pages + kv_head.to(tl.int64) * stride_head
    for start in range(0, count, TILE):
        token = start + n
        live = token < count
        block = tl.load(table + first + token // BLOCK, mask=live, other=0).to(tl.int64)
        slot = block * stride_block + (token % BLOCK) * HEAD_DIM
        used = live[:, None] & (d[None, :] < HEAD_DIM)
        key = tl.load(base + slot[:, None] + d[None, :], mask=used, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(live[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - new_top)
        weight = tl.exp2(scores - new_top[:, None])
        value = tl.load(base + stride_value + slot[:, None] + d[None, :], mask=used, other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(weight, 1)
        top = new_top
    place = split * KV_HEADS * GROUP + kv_head * GROUP + head
    tl.store(out + place[:, None] * HEAD_DIM + d[None, :], acc / total[:, None], mask=real)
    tl.store(lse + place, top + tl.log2(total), mask=head < GROUP)


@triton.jit
def _merge(
    partial,
    lse,
    bounds,
    targets,
    out,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    MERGED: tl.constexpr,
):
    output = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(bounds + output)
    last = tl.load(bounds + output + 1)
    target = tl.load(targets + output).to(tl.int64)
    d = tl.arange(0, DIM)
    n = tl.arange(0, MERGED)
    top = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([DIM], tl.float32)
    for start in range(first, last, MERGED):
        split = start + n
        live = split < last
        place = split * HEADS + head
        x = tl.load(lse + place, mask=live, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        weight = tl.exp2(x - new_top)
        shrink = tl.exp2(top - new_top)
        used = live[:, None] & (d[None, :] < HEAD_DIM)
        part = tl.load(partial + place[:, None] * HEAD_DIM + d[None, :], mask=used, other=0.0)
        acc = acc * shrink + tl.sum(part * weight[:, None], 0)
        total = total * shrink + tl.sum(weight, 0)
        top = new_top
    total = tl.where(total == 0, 1.0, total)
    place = (target * HEADS + head) * HEAD_DIM + d
    tl.store(out + place, (acc / total).to(out.dtype.element_ty), mask=d < HEAD_DIM)
