"""Attention over pages with torch's fused attention: gather a sequence's pages, then one call.

One sequence after another: measured within a few per cent of a padded decode batch on a CPU, and nothing
is computed for padding.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from warmfleet_kernels.batch import Batch, Gather, Sequence
from warmfleet_kernels.rotation import rotate


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """``reference.attention`` for ``query[rows, heads, head_dim]``: the same contract, the same shape."""
    out = torch.empty_like(query)
    for sequence, gather in zip(batch.sequences, batch.gathers, strict=True):
        rows = slice(sequence.first, sequence.first + sequence.count)
        keys, values = _read(pool, layer, sequence, gather)
        if any(segment.turn is not None for segment in sequence.segments):
            out[rows] = _attend_turned(sequence, gather, query[rows], keys, values, pool.shape[4])
        else:
            out[rows] = _attend(sequence, gather, query[rows], keys, values)
    return out


def _read(pool: Tensor, layer: int, sequence: Sequence, gather: Gather) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, context, head_dim]: slots past the context are cut off, never masked."""
    _, _, pair, kv_heads, block_size, head_dim = pool.shape
    pages = pool.view(-1, block_size * head_dim).index_select(0, gather.rows + layer * pair * kv_heads)
    keys, values = pages.view(pair, kv_heads, -1, head_dim)[:, :, : sequence.context]
    return keys, values


def _attend(sequence: Sequence, gather: Gather, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    count, heads, head_dim = query.shape
    if count == 1:  # query heads that share keys become query rows: no head is read twice
        grouped = query.view(keys.shape[0], -1, head_dim)
        return scaled_dot_product_attention(grouped[None], keys[None], values[None]).view(1, heads, head_dim)
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=gather.mask,
        is_causal=gather.mask is None,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _attend_turned(
    sequence: Sequence, gather: Gather, query: Tensor, keys: Tensor, values: Tensor, block_size: int
) -> Tensor:
    """Scores of every segment by a query turned once for it, then one softmax over all of them."""
    count, heads, head_dim = query.shape
    kv_heads, context, _ = keys.shape
    scores, first = [], 0
    for segment in sequence.segments:
        turned = query if segment.turn is None else rotate(query, segment.turn)
        grouped = turned.transpose(0, 1).reshape(kv_heads, -1, head_dim)
        last = first + len(segment.blocks) * block_size
        scores.append((grouped @ keys[:, first:last].transpose(1, 2)).float())
        first = last
    logits = torch.cat(scores, dim=-1).view(heads, count, context) * head_dim**-0.5
    if gather.mask is not None:
        logits = logits.masked_fill(~gather.mask, -torch.inf)
    weights = logits.softmax(-1).to(values.dtype).view(kv_heads, -1, context)
    out: Tensor = weights @ values
    return out.view(heads, count, head_dim).transpose(0, 1)
