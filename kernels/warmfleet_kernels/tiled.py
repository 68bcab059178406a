"""Attention of a few prompt rows straight over pages, in one launch whatever the sequences. Triton.

A *unit* is a tile of rows of one sequence and a range of the keys that they attend to; its results are merged
with those of the tile's other units, and of decode splits, by ``decode``. Half as fast as cuDNN over gathered
keys when both have much to do (LOG.md), but its grid is fixed: a step can be captured with it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # of a tile, with ...
_HEADS = 4  # ... so many of the query heads that share keys: what fills a matrix product
_KEYS = 64  # read at once
_WIDE_KEYS = 32  # of four bytes a number
_WARPS, _STAGES = 4, 3


class Tiles(NamedTuple):
    """Units. All int32 [units]; a unit without rows is skipped."""

    rows: Tensor  # first row, of the queries
    counts: Tensor  # rows
    starts: Tensor  # position of the first row
    pages: Tensor  # into the table: where the range's first key lies, at the start of its page
    keys: Tensor  # position of the range's first key
    tokens: Tensor  # keys of the range
    slots: Tensor  # of partial results: row i takes slots[unit] + i * parts[unit]
    parts: Tensor  # units of the tile


def attend_tiles(
    pages: Tensor, queries: Tensor, table: Tensor, tiles: Tiles, partial: Tensor, lse: Tensor
) -> None:
    """Results of all units, float32, into ``partial[slots, heads, head_dim]`` and ``lse[slots, heads]``.

    ``pages`` is one layer of a pool, ``queries[rows, heads, head_dim]`` contiguous. lse is of base 2.
    """
    _, _, kv_heads, block_size, head_dim = pages.shape
    group = queries.shape[1] // kv_heads
    wide = pages.dtype == torch.float32
    together = 1 if wide else min(_HEADS, triton.next_power_of_2(group))
    _attend[(len(tiles.rows), kv_heads, triton.cdiv(group, together))](
        queries,
        pages,
        table,
        *tiles,
        partial,
        lse,
        head_dim**-0.5 * 1.4426950408889634,  # log2(e): the kernel uses exp2
        pages.stride(0),
        pages.stride(1),
        pages.stride(2),
        KV_HEADS=kv_heads,
        GROUP=group,
        TOGETHER=together,
        ROWS=ROWS,
        HEAD_DIM=head_dim,
        DIM=max(16, triton.next_power_of_2(head_dim)),
        BLOCK=block_size,
        KEYS=(_WIDE_KEYS if wide else _KEYS) // (2 if head_dim > 128 else 1),
        num_warps=4 if wide else _WARPS,
        num_stages=2 if wide else _STAGES,
    )


@triton.jit
def _attend(
    queries, pages, table, rows, counts, starts, firsts, keys, tokens, slots, parts, partial, lse, scale,
    stride_block, stride_value, stride_head,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0)
    kv_head = tl.program_id(1)
    count = tl.load(counts + unit)
    if count == 0:
        return
    m = tl.arange(0, ROWS * TOGETHER)
    row = m // TOGETHER
    head = tl.program_id(2) * TOGETHER + m % TOGETHER
    real = (row < count) & (head < GROUP)
    head += kv_head * GROUP
    d = tl.arange(0, DIM)
    inside = d < HEAD_DIM
    place = ((tl.load(rows + unit) + row).to(tl.int64) * (KV_HEADS * GROUP) + head) * HEAD_DIM
    query = tl.load(queries + place[:, None] + d[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    start = tl.load(starts + unit)
    position = start + row
    key = tl.load(keys + unit)
    last = key + tl.load(tokens + unit)
    blocks = table + tl.load(firsts + unit)
    base = pages + kv_head.to(tl.int64) * stride_head
    top = tl.full([ROWS * TOGETHER], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * TOGETHER], tl.float32)
    acc = tl.zeros([ROWS * TOGETHER, DIM], tl.float32)
    seen = key + tl.maximum(tl.minimum(last, start + 1) - key, 0) // KEYS * KEYS  # by every row, whole reads
    for at in range(key, seen, KEYS):
        acc, top, total = _read(
            acc, top, total, query, position, base, blocks, at, key, last,
            scale, stride_block, stride_value, inside, d, False, HEAD_DIM, BLOCK, KEYS,
        )  # fmt: skip
    for at in range(seen, last, KEYS):
        acc, top, total = _read(
            acc, top, total, query, position, base, blocks, at, key, last,
            scale, stride_block, stride_value, inside, d, True, HEAD_DIM, BLOCK, KEYS,
        )  # fmt: skip
    nothing = total == 0  # the range is the future of this row
    total = tl.where(nothing, 1.0, total)
    slot = (tl.load(slots + unit) + row * tl.load(parts + unit)).to(tl.int64) * (KV_HEADS * GROUP) + head
    share = acc / total[:, None]
    tl.store(partial + slot[:, None] * HEAD_DIM + d[None, :], share, mask=real[:, None] & inside[None, :])
    tl.store(lse + slot, tl.where(nothing, float("-inf"), top + tl.log2(total)), mask=real)


@triton.jit
def _read(
    acc,
    top,
    total,
    query,
    position,
    base,
    blocks,
    at,
    key,
    last,
    scale,
    stride_block,
    stride_value,
    inside,
    d,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Takes the keys from position ``at`` on in."""
    token = at + tl.arange(0, KEYS)
    if MASKED:
        live = token < last
        used = live[:, None] & inside[None, :]
        block = tl.load(blocks + (token - key) // BLOCK, mask=live, other=0).to(tl.int64)
    else:
        used = (token >= 0)[:, None] & inside[None, :]
        block = tl.load(blocks + (token - key) // BLOCK).to(tl.int64)
    slot = base + block * stride_block + (token - key) % BLOCK * HEAD_DIM
    k = tl.load(slot[:, None] + d[None, :], mask=used, other=0.0)
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where((token[None, :] <= position[:, None]) & live[None, :], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    finite = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    shrink = tl.exp2(top - finite)
    weight = tl.exp2(scores - finite[:, None])
    v = tl.load(slot[:, None] + stride_value + d[None, :], mask=used, other=0.0)
    acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    return acc, new_top, total * shrink + tl.sum(weight, 1)
