"""The tables of a step with a few prompt rows, padded to the sizes that a graph was captured with."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from warmfleet_kernels import Batch, device, tiles
from warmfleet_kernels.decode import Splits
from warmfleet_kernels.device import Reads
from warmfleet_kernels.splits import most_splits
from warmfleet_kernels.tiled import ROWS, Tiles

from warmfleet_worker.engine.base import Work
from warmfleet_worker.engine.ragged import flatten
from warmfleet_worker.engine.staging import Words
from warmfleet_worker.models.rope import Rope

DECODED = 256  # rows of a step that are decoded one by one
PROMPTS = 16  # of a step
TABLE = 1 << 18  # blocks of all sequences of a step together
_ALIGNED = 4  # words: tables start at 16 bytes, so that kernels are compiled once for all sizes


class Inputs(NamedTuple):
    """What a captured forward reads."""

    token_ids: Tensor
    follows: Tensor  # -1: the token id is known
    homes: Tensor
    batch: Batch


class Layout:
    """Where the tables of steps of up to ``rows`` rows lie in the static words."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        splits = most_splits(min(rows, DECODED))
        units = tiles.most_units(rows // ROWS + PROMPTS)
        self._lengths = [*[rows] * 5, *[splits] * 3, rows + 1, rows, *[units] * len(Tiles._fields)]
        self._firsts = list(accumulate((-(-n // _ALIGNED) * _ALIGNED for n in self._lengths), initial=0))
        self.words = self._firsts[-1] + TABLE

    def inputs(self, words: Tensor) -> Inputs:
        """Views of the static words."""
        parts = [words[first : first + n] for first, n in zip(self._firsts, self._lengths, strict=False)]
        token_ids, follows, homes, blocks, offsets, *rest = parts
        splits = Splits(words[self._firsts[-1] : self.words], *rest[:5])
        reads = Reads(splits, tiles=Tiles(*rest[5:]))
        return Inputs(token_ids, follows, homes, Batch((), blocks, offsets, reads=reads))

    def fill(self, words: Words, works: Sequence[Work], pool: Tensor, rope: Rope) -> int:
        """The tables of a step that ``fits``; how many words it uses. Rows that it does not need write no
        KV and attend to nothing."""
        ragged = flatten(works, pool.shape[4], rope)
        made = device.tables(ragged.sequences, pool)
        splits, found = made.decoded.splits, made.tiles
        assert splits is not None
        assert found is not None
        follows = torch.full_like(ragged.token_ids, -1)
        if ragged.follows is not None:
            follows[ragged.follows.rows.long()] = ragged.follows.places
        own = (ragged.token_ids, follows, ragged.homes, made.blocks, made.offsets)
        unneeded = np.arange(len(follows), self.rows, dtype=np.int32)
        pads: list[int | Words] = [
            0,
            -1,
            0,
            -1,
            0,
            *[0] * 3,
            int(splits.bounds[-1]),
            unneeded,
            *[0] * len(found),
        ]
        for first, length, part, pad in zip(
            self._firsts, self._lengths, (*own, *splits[1:], *found), pads, strict=False
        ):
            words[first : first + len(part)] = part.numpy()
            words[first + len(part) : first + length] = pad
        first = self._firsts[-1]
        words[first : first + len(splits.table)] = splits.table.numpy()
        return first + len(splits.table)


def fits(works: Sequence[Work], block_size: int, rows: int) -> bool:
    """Whether such tables hold the works: prompts beside decode rows, a run each."""
    if not 0 < sum(len(w.token_ids) for w in works) <= rows or any(len(w.runs) != 1 for w in works):
        return False
    prompts = list(_prompts(works))
    decoded = sum(len(w.token_ids) for w in works) - sum(len(w.token_ids) for w in prompts)
    return (
        0 < len(prompts) <= PROMPTS
        and decoded <= DECODED
        and tiles.few([(len(w.token_ids), w.start) for w in prompts])
        and sum(-(-(w.start + len(w.token_ids)) // block_size) for w in works) <= TABLE
    )


def _prompts(works: Sequence[Work]) -> Iterator[Work]:
    return (work for work in works if len(work.token_ids) > device.DECODED)
