"""A ragged batch as the kernels see it: rows of several sequences, one after another."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from warmfleet_kernels.rotation import Rotation


class Segment(NamedTuple):
    """Consecutive blocks of a sequence whose keys share a home.

    ``turn`` (one row) rotates a query of the sequence into the frame of these keys; None where it is
    there already.
    """

    blocks: Tensor  # int64 [n], on the pool's device
    turn: Rotation | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """Rows ``first`` to ``first + count`` of a batch: positions ``start`` and on of one sequence.

    Position p lives in slot p % block_size of block p // block_size of the segments in order, which
    cover positions 0 to ``context`` and no block more.
    """

    first: int
    count: int
    start: int
    segments: tuple[Segment, ...]

    @property
    def context(self) -> int:
        """Positions that the last row attends to."""
        return self.start + self.count


class Gather(NamedTuple):
    """What attention of one sequence needs in every layer, computed once a step."""

    rows: Tensor  # int64 [2 * kv_heads * blocks]: of the pool as [-1, block_size * head_dim], for layer 0
    mask: Tensor | None  # 0 or -inf, [count, slots of the blocks]; None: several rows from position 0 on


@dataclass(frozen=True, slots=True)
class Batch:
    """Where each row is written, and what each sequence reads."""

    sequences: tuple[Sequence, ...]
    blocks: Tensor  # int64 [rows]
    offsets: Tensor  # int64 [rows]
    gathers: tuple[Gather, ...]


def prepare(sequences: Items[Sequence], pool: Tensor) -> Batch:
    """The batch of ``sequences``, whose rows follow one another from 0 on without a gap."""
    block_size = pool.shape[4]
    blocks, offsets = [], []
    for sequence in sequences:
        table = torch.cat([segment.blocks for segment in sequence.segments])
        positions = torch.arange(sequence.start, sequence.context, device=pool.device)
        blocks.append(table[positions // block_size])
        offsets.append(positions % block_size)
    gathers = tuple(_gather(sequence, pool) for sequence in sequences)
    return Batch(tuple(sequences), torch.cat(blocks), torch.cat(offsets), gathers)


def _gather(sequence: Sequence, pool: Tensor) -> Gather:
    _, layers, pair, kv_heads, _, _ = pool.shape
    table = torch.cat([segment.blocks for segment in sequence.segments])
    parts = torch.arange(pair * kv_heads, device=pool.device)
    rows = (parts[:, None] + table[None, :] * (layers * pair * kv_heads)).reshape(-1)
    return Gather(rows, _mask(sequence, len(table) * pool.shape[4], pool))


def _mask(sequence: Sequence, slots: int, pool: Tensor) -> Tensor | None:
    if sequence.start == 0 and sequence.count > 1:
        return None
    positions = torch.arange(slots, device=pool.device)
    future = positions[None, :] > positions[sequence.start : sequence.context, None]
    return pool.new_zeros(future.shape).masked_fill(future, -torch.inf)
