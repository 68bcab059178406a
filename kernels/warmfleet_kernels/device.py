"""A batch on a GPU: attention by decode splits, tiles and prefill slabs.

Rows of a sequence with few of them are decoded, each over its own context; the rest is prefill, over its
pages where there is little of it.
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

import torch
from torch import Tensor

from warmfleet_kernels.batch import Batch, Sequence, slots
from warmfleet_kernels.decode import Splits, decode
from warmfleet_kernels.packing import send
from warmfleet_kernels.prefill import Group, new_slab, prefill
from warmfleet_kernels.rotation import rotate
from warmfleet_kernels.slab import groups
from warmfleet_kernels.splits import Decoded, TurnedRows, decoded
from warmfleet_kernels.tiled import Tiles
from warmfleet_kernels.tiles import no_splits, pays, tiled

DECODED = 8  # rows: a sequence with no more of them is decoded row by row


class Reads(NamedTuple):
    """What attention reads, the same in every layer."""

    splits: Splits | None
    turned: TurnedRows | None = None
    tiles: Tiles | None = None
    groups: tuple[Group, ...] = ()
    slab: Tensor | None = None  # [2, kv_heads, tokens, head_dim]


class Tables(NamedTuple):
    """A batch on the host."""

    blocks: Tensor
    offsets: Tensor
    decoded: Decoded
    tiles: Tiles | None
    groups: tuple[Group, ...]


def tables(sequences: Items[Sequence], pool: Tensor) -> Tables:
    """The tables of a step with ``sequences``, whose rows follow one another from 0 on."""
    block_size, head_dim = pool.shape[4:]
    pairs = [(sequence, sequence.table()) for sequence in sequences]
    written = slots(sequences, [table for _, table in pairs], block_size)
    short = [pair for pair in pairs if pair[0].count <= DECODED]
    prompts = [pair for pair in pairs if pair[0].count > DECODED]
    rows = decoded(short, block_size, len(written.blocks)) if short else Decoded(None, None)
    tiles = None
    if prompts and pays([sequence for sequence, _ in prompts]):
        splits, tiles = tiled(prompts, rows.splits or no_splits(), block_size)
        rows, prompts = Decoded(splits, rows.turned), []
    return Tables(
        torch.from_numpy(written.blocks),
        torch.from_numpy(written.offsets),
        rows,
        tiles,
        groups(prompts, block_size, head_dim, pool.dtype),
    )


def prepare(sequences: Items[Sequence], pool: Tensor) -> Batch:
    """The batch on the pool's device of ``sequences``, whose rows follow one another from 0 on."""
    blocks, offsets, (splits, turned), tiles, parts = send(tables(sequences, pool), pool.device)
    slab = None
    if parts:
        slab = new_slab(pool, max(len(part.table) for part in parts) * pool.shape[4])
    return Batch(tuple(sequences), blocks, offsets, reads=Reads(splits, turned, tiles, parts, slab))


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """``reference.attention`` for ``query[rows, heads, head_dim]``."""
    assert batch.reads is not None
    splits, turned, tiles, parts, slab = batch.reads
    pages, out = pool[:, layer], torch.empty_like(query)
    if splits is not None:
        queries = query
        if turned is not None:
            queries = torch.cat((query, rotate(query[turned.rows], turned.rotation)))
        decode(pages, queries, splits, out, tiles)
    for part in parts:
        assert slab is not None
        out = prefill(pages, query, part, slab, out)
    return out
