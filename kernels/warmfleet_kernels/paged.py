"""Attention over pages on a CPU: gather a sequence's pages, then one call.

One sequence after another: measured within a few per cent of a padded decode batch, and nothing is computed
for padding. Half precision takes torch's fused attention; float32 and segments with turns the invariant one.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from warmfleet_kernels import invariant
from warmfleet_kernels.batch import Batch, Gather, Sequence


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """``reference.attention`` for ``query[rows, heads, head_dim]``: the same contract, the same shape."""
    out = torch.empty_like(query)
    for sequence, gather in zip(batch.sequences, batch.gathers, strict=True):
        rows = slice(sequence.first, sequence.first + sequence.count)
        keys, values = _read(pool, layer, sequence, gather)
        turned = any(segment.turn is not None for segment in sequence.segments)
        if turned or query.dtype == torch.float32:
            block_size = pool.shape[4]
            out[rows] = invariant.attend(sequence, gather.mask, query[rows], keys, values, block_size)
        else:
            out[rows] = _attend(sequence, gather, query[rows], keys, values)
    return out


def _read(pool: Tensor, layer: int, sequence: Sequence, gather: Gather) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, slots, head_dim]: whole blocks, zeros past the context, which is masked."""
    _, _, pair, kv_heads, block_size, head_dim = pool.shape
    pages = pool.view(-1, block_size * head_dim).index_select(0, gather.rows + layer * pair * kv_heads)
    slots = pages.view(pair, kv_heads, -1, head_dim)
    slots[:, :, sequence.context :] = 0  # what a slot held before may be NaN, which no mask stops
    keys, values = slots
    return keys, values


def _attend(sequence: Sequence, gather: Gather, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    count, heads, head_dim = query.shape
    if count == 1:  # query heads that share keys become query rows: no head is read twice
        rows = query.view(keys.shape[0], -1, head_dim)
        out = scaled_dot_product_attention(rows[None], keys[None], values[None], attn_mask=gather.mask)
        return out.view(1, heads, head_dim)
    causal = sequence.start == 0
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=None if causal else gather.mask,
        is_causal=causal,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
