"""Whole blocks between a pool and a contiguous slab, with a 128-bit sum made on the way. Triton.

The sum is ``warmfleet_proto.checksum``'s: the caller passes its constants in. It is computed from the
words in registers, so a sealed block costs no second read: .89 to .91 of the copy rate of an H200, .91
to .97 without it (LOG.md).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # words a program


class SumConstants(NamedTuple):
    """Constants of a multilinear sum over rows of ``keys.shape[1]`` 32-bit words; int64 holding unsigned
    bits."""

    keys: Tensor  # [2, words of a row]
    rungs: Tensor  # [rows, 2]


class Told(NamedTuple):
    """An address that is looked up on the device: so one recorded launch serves any."""

    address: Tensor  # int64 [1]


Memory = Tensor | int | Told
"""Blocks one after another: a tensor, or the address (a multiple of 16) of memory unknown to torch."""


def gather_blocks(
    pool: Tensor,
    blocks: Tensor,
    slab: Memory,
    constants: SumConstants | None = None,
    sums: Tensor | None = None,
) -> Tensor | None:
    """Copy ``pool[blocks]`` into ``slab[:len(blocks)]``; with constants, return the blocks' sums.

    ``blocks`` is int32 on the pool's device, the sums are int64 [n, 2]: added to ``sums`` where these are
    given. Nothing is copied for a negative block. Blocks are a multiple of 4 bytes.
    """
    return _move(pool, blocks, slab, None, constants, sums)


def scatter_blocks(
    slab: Memory,
    pool: Tensor,
    blocks: Tensor,
    constants: SumConstants | None = None,
    sums: Tensor | None = None,
) -> Tensor | None:
    """Copy ``slab[:len(blocks)]`` to ``pool[blocks]``, which must differ; with constants, return the sums."""
    return _move(slab, None, pool, blocks, constants, sums)


def _move(
    source: Memory,
    froms: Tensor | None,
    target: Memory,
    tos: Tensor | None,
    constants: SumConstants | None,
    sums: Tensor | None = None,
) -> Tensor | None:
    pool, table = (source, froms) if isinstance(source, Tensor) and froms is not None else (target, tos)
    assert isinstance(pool, Tensor)
    assert table is not None
    words, count = pool[0].nbytes // 4, len(table)
    if constants is not None:
        assert constants.rungs.shape[0] * constants.keys.shape[1] >= words, "constants for smaller blocks"
        if sums is None:
            sums = torch.zeros((count, 2), dtype=torch.int64, device=pool.device)
    if count:
        _move_blocks[(triton.cdiv(words, _TILE), count)](
            _words(source),
            _words(target),
            froms,
            tos,
            sums,
            *(constants or (None, None)),
            words,
            SUM=constants is not None,
            TILE=_TILE,
            ROW=constants.keys.shape[1] if constants else 1,
            num_warps=4,
        )
    return sums


def _words(blocks: Memory) -> Tensor | int:
    if isinstance(blocks, Told):
        return blocks.address
    return blocks.view(-1).view(torch.int32) if isinstance(blocks, Tensor) else blocks


@triton.jit
def _move_blocks(
    source,
    target,
    froms,
    tos,
    sums,
    keys,
    rungs,
    words,
    SUM: tl.constexpr,
    TILE: tl.constexpr,
    ROW: tl.constexpr,
):
    tile = tl.program_id(0)
    n = tl.program_id(1)
    here, there = _place(froms, n), _place(tos, n)
    if (here < 0) | (there < 0):
        return
    i = tile * TILE + tl.arange(0, TILE)
    inside = i < words
    word = tl.load(_words_of(source) + here * words + i, mask=inside, other=0)
    tl.store(_words_of(target) + there * words + i, word, mask=inside)
    if SUM:
        value = tl.reshape(word.to(tl.uint32, bitcast=True).to(tl.uint64), [TILE // ROW, ROW])
        k = tl.arange(0, ROW)
        row = tile * (TILE // ROW) + tl.arange(0, TILE // ROW)
        for half in tl.static_range(2):
            key = tl.load(keys + half * ROW + k).to(tl.uint64, bitcast=True)
            used = row * ROW < words
            rung = tl.load(rungs + 2 * row + half, mask=used, other=0).to(tl.uint64, bitcast=True)
            total = tl.sum(tl.sum(value * key[None, :], 1) * rung, 0)
            tl.atomic_add(sums + 2 * n + half, total.to(tl.int64, bitcast=True), sem="relaxed")


@triton.jit
def _place(table, n):
    """Where the n-th block lies."""
    place = n.to(tl.int64)
    if table is not None:
        place = tl.load(table + n).to(tl.int64)
    return place


@triton.jit
def _words_of(memory):
    """An address says nothing of its alignment: without the hint, words would be moved one by one."""
    if memory.dtype.is_ptr() and memory.dtype.element_ty == tl.int64:
        memory = tl.load(memory)
    if not memory.dtype.is_ptr():
        memory = tl.multiple_of(memory.to(tl.pointer_type(tl.int32)), 16)
    return memory
