"""Attention over pages with torch's fused attention: gather a sequence's pages, then one call.

One sequence after another: measured within a few per cent of a padded decode batch on a CPU, and nothing
is computed for padding.

On a CPU in float32 a row's result is the same to the last bit whatever else is in the batch and wherever
its sequence was cut: no product has too few rows (``rows``), and contexts are whole blocks, since the last
values of one that does not fill a vector would get another exponential.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from warmfleet_kernels.batch import Batch, Gather, Sequence
from warmfleet_kernels.rotation import rotate
from warmfleet_kernels.rows import at_least


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
        out = scaled_dot_product_attention(
            at_least(rows, dim=1)[None], keys[None], values[None], attn_mask=gather.mask
        )
        return out[0, :, : rows.shape[1]].reshape(1, heads, head_dim)
    out = scaled_dot_product_attention(
        at_least(query).transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=None if gather.mask is None else at_least(gather.mask),
        is_causal=gather.mask is None,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)[:count]


def _attend_turned(
    sequence: Sequence, gather: Gather, query: Tensor, keys: Tensor, values: Tensor, block_size: int
) -> Tensor:
    """Scores of every segment by a query turned once for it, then one softmax over all of them."""
    count, heads, head_dim = query.shape
    kv_heads, slots, _ = keys.shape
    scores, first = [], 0
    for segment in sequence.segments:
        turned = query if segment.turn is None else rotate(query, segment.turn)
        grouped = turned.transpose(0, 1).reshape(kv_heads, -1, head_dim)
        last = first + len(segment.blocks) * block_size
        scores.append((grouped @ keys[:, first:last].transpose(1, 2)).float())
        first = last
    logits = torch.cat(scores, dim=-1).view(heads, count, slots) * head_dim**-0.5
    assert gather.mask is not None, "rows from position 0 on have one segment: their own"
    weights = (logits + gather.mask).softmax(-1).to(values.dtype).view(kv_heads, -1, slots)
    out: Tensor = weights @ values
    return out.view(heads, count, head_dim).transpose(0, 1)
