"""How a step's decode rows are cut into splits. On the host."""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from warmfleet_kernels.batch import Ints, Sequence, int32
from warmfleet_kernels.decode import Splits
from warmfleet_kernels.rotation import Rotation

TARGET = 64  # splits that fill a device when there are few rows; with more, merging costs more (LOG.md)
LEAST = 64  # tokens, a tile of ``decode``: a shorter split costs more to merge than it gains


class TurnedRows(NamedTuple):
    """Queries that are needed in other frames too."""

    rows: Tensor  # int32 [n]
    rotation: Rotation


class Decoded(NamedTuple):
    splits: Splits | None
    turned: TurnedRows | None  # their rows follow the batch's own


class Cut(NamedTuple):
    """The splits of ranges: which range each belongs to, where it starts in it, and its tokens."""

    owners: Ints
    starts: Ints
    tokens: Ints


def most_splits(ranges: int) -> int:
    """No ``cut`` of that many ranges has more splits: what a fixed grid must hold."""
    return 2 * ranges + TARGET


def cut(tokens: Ints, block_size: int, room: int | None = None, least: int = LEAST) -> Cut:
    """Equal splits of ranges of ``tokens`` each, in whole blocks, so many that the device is full: at most
    ``room`` more than there are ranges, each of ``least`` tokens where there are as many."""
    if room is None:
        room = most_splits(len(tokens)) - len(tokens)
    size = max(least, -(-int(tokens.sum()) // room))
    counts = -(-tokens // size)
    sizes = -(-tokens // counts)  # a range's splits are alike: the device waits for the longest
    sizes = -(-sizes // LEAST) * LEAST  # whole tiles
    sizes = -(-sizes // block_size) * block_size
    counts = -(-tokens // sizes)
    owners = np.repeat(np.arange(len(tokens), dtype=np.int32), counts)
    ends = np.cumsum(counts)
    starts = (np.arange(len(owners)) - np.repeat(ends - counts, counts)) * sizes[owners]
    left = np.minimum(sizes[owners], tokens[owners] - starts)
    return Cut(owners, starts.astype(np.int32), left.astype(np.int32))


class _Range(NamedTuple):
    """What one row attends to in one segment."""

    row: int  # of the batch
    first: int  # in the table
    tokens: int
    turn: Rotation | None


def decoded(pairs: Items[tuple[Sequence, Ints]], block_size: int, rows: int) -> Decoded:
    """The splits of all rows of the sequences (each with its table), of a batch of ``rows`` rows."""
    ranges = _ranges(pairs, block_size)
    made = cut(np.array([r.tokens for r in ranges], dtype=np.int32), block_size)
    turned = [i for i, r in enumerate(ranges) if r.turn is not None]
    owners = np.array([r.row for r in ranges])
    queries = owners.copy()
    queries[turned] = rows + np.arange(len(turned))
    targets, counts = np.unique(owners[made.owners], return_counts=True)
    splits = Splits(
        int32(np.concatenate([table for _, table in pairs])),
        int32(queries[made.owners]),
        int32(np.array([r.first for r in ranges])[made.owners] + made.starts // block_size),
        int32(made.tokens),
        int32(np.cumsum([0, *counts])),
        int32(targets),
    )
    rotations = [r.turn for r in ranges if r.turn is not None]
    return Decoded(splits, TurnedRows(int32(owners[turned]), _joined(rotations)) if turned else None)


def _ranges(pairs: Items[tuple[Sequence, Ints]], block_size: int) -> list[_Range]:
    ranges, base = [], 0
    for sequence, table in pairs:
        for i in range(sequence.count):
            left, first = sequence.start + i + 1, base
            for segment in sequence.segments:
                held = len(segment.blocks) * block_size
                if left > 0:
                    ranges.append(_Range(sequence.first + i, first, min(held, left), segment.turn))
                left -= held
                first += len(segment.blocks)
        base += len(table)
    return ranges


def _joined(rotations: Items[Rotation]) -> Rotation:
    return Rotation(torch.cat([r.cos for r in rotations]), torch.cat([r.sin for r in rotations]))
