"""A ragged batch as the kernels see it: rows of several sequences, one after another."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from warmfleet_kernels.rotation import Rotation

if TYPE_CHECKING:
    from warmfleet_kernels.device import Reads

Ints = npt.NDArray[np.int32]


class Segment(NamedTuple):
    """Consecutive blocks of a sequence whose keys share a home.

    ``turn`` (one row, on the host) rotates a query of the sequence into the frame of these keys; None
    where it is there already.
    """

    blocks: Items[int]
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

    def table(self) -> Ints:
        """All blocks of the sequence."""
        return np.concatenate([np.asarray(segment.blocks, dtype=np.int32) for segment in self.segments])


class Gather(NamedTuple):
    """What attention of one sequence needs in every layer, computed once a step."""

    rows: Tensor  # int64 [2 * kv_heads * blocks]: of the pool as [-1, block_size * head_dim], for layer 0
    mask: Tensor  # 0 or -inf, [count, slots of the blocks]


@dataclass(frozen=True, slots=True)
class Batch:
    """Where each row is written, and what each sequence reads: ``gathers`` on a CPU, ``reads`` on a GPU."""

    sequences: tuple[Sequence, ...]
    blocks: Tensor  # int64 [rows] (int32 on a GPU, where a row of a negative block is not written)
    offsets: Tensor  # the same
    gathers: tuple[Gather, ...] = ()
    reads: "Reads | None" = None


class Slots(NamedTuple):
    """Where rows are written."""

    blocks: Ints
    offsets: Ints


def slots(sequences: Items[Sequence], tables: Items[Ints], block_size: int) -> Slots:
    """The slot of every row; ``tables`` are the sequences'."""
    counts = [sequence.count for sequence in sequences]
    starts = np.array([s.start - s.first for s in sequences])
    positions = np.arange(sum(counts)) + np.repeat(starts, counts)
    bases = np.cumsum([0, *map(len, tables[:-1])])
    table = np.concatenate(tables)
    blocks = table[positions // block_size + np.repeat(bases, counts)]
    return Slots(blocks, (positions % block_size).astype(np.int32))


def prepare(sequences: Items[Sequence], pool: Tensor) -> Batch:
    """The batch on a CPU of ``sequences``, whose rows follow one another from 0 on without a gap."""
    tables = [sequence.table() for sequence in sequences]
    blocks, offsets = (torch.from_numpy(part).long() for part in slots(sequences, tables, pool.shape[4]))
    gathers = tuple(_gather(*pair, pool) for pair in zip(sequences, tables, strict=True))
    return Batch(tuple(sequences), blocks, offsets, gathers)


def _gather(sequence: Sequence, table: Ints, pool: Tensor) -> Gather:
    _, layers, pair, kv_heads, _, _ = pool.shape
    parts = torch.arange(pair * kv_heads)
    rows = (parts[:, None] + torch.from_numpy(table).long()[None, :] * (layers * pair * kv_heads)).reshape(-1)
    return Gather(rows, _mask(sequence, len(table) * pool.shape[4], pool))


def _mask(sequence: Sequence, slots: int, pool: Tensor) -> Tensor:
    positions = torch.arange(slots)
    future = positions[None, :] > positions[sequence.start : sequence.context, None]
    return pool.new_zeros(future.shape).masked_fill(future, -torch.inf)


def int32(array: Ints) -> Tensor:
    return torch.from_numpy(array.astype(np.int32))
