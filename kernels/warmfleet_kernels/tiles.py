"""How a step's few prompt rows are cut into units. On the host."""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch

from warmfleet_kernels.batch import Ints, Sequence, int32
from warmfleet_kernels.decode import Splits
from warmfleet_kernels.splits import cut
from warmfleet_kernels.tiled import ROWS, Tiles

MOST_ROWS = 512  # of prompts in a step: with more, the device takes longer than launching kernel after kernel
_PAIRS = 5 << 20  # (row, token before it): with more, what cuDNN gains outweighs that
_TARGET = 66  # units: with 8 KV heads four full rounds of an H200's 132 processors; 68 would take five
_LEAST = 256  # keys: a smaller unit costs more to merge than it gains


class Tiled(NamedTuple):
    splits: Splits  # those given, whose table, bounds and targets now serve the tiles' rows too
    tiles: Tiles


class _Tile(NamedTuple):
    first: int  # row
    rows: int
    start: int
    page: int  # into the table: the sequence's first


def pays(sequences: Items[Sequence]) -> bool:
    """Whether these prompts are few and short enough, and their keys all in their queries' frame."""
    turned = any(segment.turn is not None for s in sequences for segment in s.segments)
    return not turned and few([(s.count, s.start) for s in sequences])


def few(prompts: Items[tuple[int, int]]) -> bool:
    """Whether prompts of so many rows, from so many tokens on, are few and short enough."""
    rows = sum(count for count, _ in prompts)
    return rows <= MOST_ROWS and sum(count * (start + count) for count, start in prompts) <= _PAIRS


def most_units(tiles: int) -> int:
    """The most units that so many tiles are ever cut into."""
    return tiles + _room(tiles)


def no_splits() -> Splits:
    """The splits of a step in which nothing decodes."""
    nothing = torch.zeros(0, dtype=torch.int32)
    return Splits(nothing, nothing, nothing, nothing, torch.zeros(1, dtype=torch.int32), nothing)


def tiled(pairs: Items[tuple[Sequence, Ints]], splits: Splits, block_size: int) -> Tiled:
    """The units of all rows of the sequences, each with its table; their results lie behind the splits'."""
    tiles = _tiles(pairs, len(splits.table))
    rows, counts, starts, pages = np.array(tiles, dtype=np.int32).T
    made = cut(starts + counts, block_size, room=_room(len(tiles)), least=_LEAST)
    parts = np.bincount(made.owners, minlength=len(tiles)).astype(np.int32)
    each = np.repeat(parts, counts)  # results of every row
    taken = int(splits.bounds[-1])
    slots = taken + np.cumsum(counts * parts) - counts * parts
    ends = np.cumsum(parts)
    within = np.arange(len(made.owners)) - (ends - parts)[made.owners]
    own = made.owners
    units = (
        rows[own],
        counts[own],
        starts[own],
        pages[own] + made.starts // block_size,
        made.starts,
        made.tokens,
        slots[own] + within,
        parts[own],
    )
    held = [splits.table.numpy(), *(table for _, table in pairs)]
    targets = [np.arange(s.first, s.first + s.count) for s, _ in pairs]
    joined = splits._replace(
        table=int32(np.concatenate(held)),
        bounds=int32(np.concatenate((splits.bounds.numpy(), taken + np.cumsum(each)))),
        targets=int32(np.concatenate((splits.targets.numpy(), *targets))),
    )
    return Tiled(joined, Tiles(*map(int32, units)))


def _room(tiles: int) -> int:
    """Units besides one for each tile."""
    return max(_TARGET - tiles, _TARGET // 4)


def _tiles(pairs: Items[tuple[Sequence, Ints]], page: int) -> list[_Tile]:
    tiles = []
    for sequence, table in pairs:
        for at in range(0, sequence.count, ROWS):
            count = min(ROWS, sequence.count - at)
            tiles.append(_Tile(sequence.first + at, count, sequence.start + at, page))
        page += len(table)
    return tiles
