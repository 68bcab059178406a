"""Where a step's long sequences lie in the slab that their pages are gathered into. On the host."""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from itertools import pairwise

import numpy as np
import torch

from warmfleet_kernels.batch import Ints, Sequence, int32
from warmfleet_kernels.prefill import SLAB_TOKENS, Chunk, Group, Ragged, Turned, alone, fused
from warmfleet_kernels.rotation import Rotation, inverse

Pair = tuple[Sequence, Ints]


def groups(pairs: Items[Pair], block_size: int, head_dim: int, dtype: torch.dtype) -> tuple[Group, ...]:
    """The sequences, each with its table, in groups that fit into the slab."""
    return tuple(_group(part, block_size, head_dim, dtype) for part in _parts(pairs, block_size))


def _parts(pairs: Items[Pair], block_size: int) -> Iterator[list[Pair]]:
    part: list[Pair] = []
    tokens = 0
    for pair in pairs:
        share = len(pair[1]) * block_size
        if part and tokens + share > SLAB_TOKENS:
            yield part
            part, tokens = [], 0
        part.append(pair)
        tokens += share
    if part:
        yield part


def _group(pairs: Items[Pair], block_size: int, head_dim: int, dtype: torch.dtype) -> Group:
    chunks, base = [], 0
    for sequence, table in pairs:
        chunks.append(Chunk(sequence.first, sequence.count, sequence.start, base))
        base += len(table) * block_size
    single = [c for c in chunks if not fused(dtype, head_dim) or alone(c.rows, c.start, head_dim)]
    together = [c for c in chunks if c not in single]
    return Group(
        int32(np.concatenate([table for _, table in pairs])),
        _turned(pairs, chunks, block_size),
        tuple(map(_ragged, _neighbours(together))),
        tuple(single),
    )


def _neighbours(chunks: Items[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks whose rows follow one another."""
    run: list[Chunk] = []
    for chunk in chunks:
        if run and run[-1].first + run[-1].rows != chunk.first:
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _ragged(chunks: Items[Chunk]) -> Ragged:
    counts = [chunk.rows for chunk in chunks]
    contexts = [chunk.context for chunk in chunks]
    bases = [chunk.base for chunk in chunks]
    return Ragged(
        chunks[0].first,
        sum(counts),
        int32(np.cumsum([0, *counts])),
        int32(np.array([*bases, bases[-1] + contexts[-1]])),
        int32(np.array(contexts)),
        max(counts),
        max(contexts),
    )


def _turned(pairs: Items[Pair], chunks: Items[Chunk], block_size: int) -> Turned | None:
    """Blocks of segments with a turn: their keys go the other way."""
    blocks: list[Ints] = []
    turns: list[Rotation] = []
    for (sequence, _), chunk in zip(pairs, chunks, strict=True):
        ends = np.cumsum([0, *(len(segment.blocks) for segment in sequence.segments)])
        for segment, (first, last) in zip(sequence.segments, pairwise(ends), strict=True):
            if segment.turn is not None:
                blocks.append(chunk.base // block_size + np.arange(first, last))
                turns += [inverse(segment.turn)] * int(last - first)
    if not turns:
        return None
    rotation = Rotation(torch.cat([t.cos for t in turns]), torch.cat([t.sin for t in turns]))
    return Turned(int32(np.concatenate(blocks)), rotation)
