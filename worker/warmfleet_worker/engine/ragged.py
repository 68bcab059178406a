"""From the scheduler's works to the flat rows that a model computes."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from warmfleet_kernels import Segment
from warmfleet_kernels import Sequence as Rows
from warmfleet_kernels.batch import Ints

from warmfleet_worker.engine.base import Run, Work
from warmfleet_worker.models.rope import Rope


class Follows(NamedTuple):
    """Rows whose token the step before draws."""

    rows: Tensor  # int32 [n]
    places: Tensor  # int32 [n]: of its draws


class Ragged(NamedTuple):
    """All works one after another."""

    token_ids: Tensor  # int32 [rows], on the host
    homes: Tensor  # the same: where each row's query and key are rotated
    sequences: tuple[Rows, ...]
    follows: Follows | None


class _Piece(NamedTuple):
    """The part of a work whose tokens land in one run."""

    start: int
    length: int
    delta: int


def flatten(works: Sequence[Work], block_size: int, rope: Rope) -> Ragged:
    """The rows of ``works``. A work that writes into runs of different deltas becomes a sequence for each."""
    token_ids: list[Ints] = []  # arrays: a device waits while a long prompt is copied into one list
    homes: list[Ints] = []
    sequences: list[Rows] = []
    follows: list[tuple[int, int]] = []
    first = 0
    for work in works:
        if work.follows is not None:
            follows.append((first, work.follows))
        token_ids.append(np.fromiter(work.token_ids, np.int32, len(work.token_ids)))
        end = first + len(work.token_ids)
        for piece in _pieces(work, block_size):
            segments = _segments(work.runs, piece, block_size, rope)
            sequences.append(Rows(first, piece.length, piece.start, segments))
            home = piece.start - piece.delta
            homes.append(np.arange(home, home + piece.length, dtype=np.int32))
            first += piece.length
        assert first == end, "the runs do not cover the work"
    return Ragged(
        torch.from_numpy(np.concatenate(token_ids)),
        torch.from_numpy(np.concatenate(homes)),
        tuple(sequences),
        Follows(*torch.tensor(follows, dtype=torch.int32).T) if follows else None,
    )


def _pieces(work: Work, block_size: int) -> Iterator[_Piece]:
    first, end = 0, work.start + len(work.token_ids)
    for delta, runs in groupby(work.runs, key=lambda run: run.delta):
        last = first + block_size * sum(len(run.blocks) for run in runs)
        start, stop = max(first, work.start), min(last, end)
        if start < stop:
            yield _Piece(start, stop - start, delta)
        first = last


def _segments(runs: Sequence[Run], piece: _Piece, block_size: int, rope: Rope) -> tuple[Segment, ...]:
    """The blocks up to the piece's last position, neighbours of one delta merged.

    Queries are rotated at the home of the run they are written to; for keys of another run they are
    turned by what is between the two.
    """
    left = -(-(piece.start + piece.length) // block_size)
    segments = []
    for delta, group in groupby(runs, key=lambda run: run.delta):
        blocks = [block for run in group for block in run.blocks][:left]
        if blocks:
            turn = rope.turn(piece.delta - delta) if delta != piece.delta else None
            segments.append(Segment(tuple(blocks), turn))
        left -= len(blocks)
    return tuple(segments)
