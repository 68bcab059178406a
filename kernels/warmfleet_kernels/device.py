"""A batch on a GPU: attention by decode splits and prefill slabs.

Rows of a sequence with few of them are decoded, each over its own context; the rest is prefill.
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

_DECODED = 8  # rows: a sequence with no more of them is decoded row by row


class Reads(NamedTuple):
    """What attention reads, the same in every layer."""

    splits: Splits | None
    turned: TurnedRows | None
    groups: tuple[Group, ...]
    slab: Tensor | None  # [2, kv_heads, tokens, head_dim]


def prepare(sequences: Items[Sequence], pool: Tensor) -> Batch:
    """The batch on the pool's device of ``sequences``, whose rows follow one another from 0 on."""
    block_size, head_dim = pool.shape[4:]
    tables = [sequence.table() for sequence in sequences]
    pairs = list(zip(sequences, tables, strict=True))
    short = [pair for pair in pairs if pair[0].count <= _DECODED]
    long = [pair for pair in pairs if pair[0].count > _DECODED]
    written = slots(sequences, tables, block_size)
    blocks, offsets, rows, parts = send(
        (
            torch.from_numpy(written.blocks),
            torch.from_numpy(written.offsets),
            decoded(short, block_size, len(written.blocks)) if short else Decoded(None, None),
            groups(long, block_size, head_dim, pool.dtype),
        ),
        pool.device,
    )
    slab = None
    if parts:
        slab = new_slab(pool, max(len(part.table) for part in parts) * block_size)
    return Batch(tuple(sequences), blocks, offsets, reads=Reads(*rows, parts, slab))


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """``reference.attention`` for ``query[rows, heads, head_dim]``."""
    assert batch.reads is not None
    splits, turned, parts, slab = batch.reads
    pages, out = pool[:, layer], torch.empty_like(query)
    if splits is not None:
        queries = query
        if turned is not None:
            queries = torch.cat((query, rotate(query[turned.rows], turned.rotation)))
        decode(pages, queries, splits, out)
    for part in parts:
        assert slab is not None
        prefill(pages, query, part, slab, out)
    return out
