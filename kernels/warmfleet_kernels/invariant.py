"""Attention whose rows do not depend on what else is in the batch or on where their sequence was cut.

In float32 on a CPU that holds to the last bit, which torch's fused attention does not give: it and the BLAS
below it sum in an order that depends on the number of rows and keys. Here no product has too few rows
(``rows``), scores are whole blocks wide, since the last values of a row that does not fill a vector would
get another exponential, and weighted values are summed in tiles of ``TILE`` keys (MKL 2024.2 sums up to 192
in order). As fast as the fused attention within a third, and faster from position 0 on.
"""

import torch
from torch import Tensor

from warmfleet_kernels.batch import Segment, Sequence
from warmfleet_kernels.rotation import rotate
from warmfleet_kernels.rows import at_least

ROWS = 64  # of a query at once: none of them reads keys past the last one's position
TILE = 128


def attend(
    sequence: Sequence, mask: Tensor, query: Tensor, keys: Tensor, values: Tensor, block_size: int
) -> Tensor:
    """``query[count, heads, head_dim]`` over ``keys`` and ``values`` ``[kv_heads, slots, head_dim]``.

    A query is turned once for every segment; one softmax, in float32, over all of them.
    """
    out = torch.empty_like(query)
    for first in range(0, len(query), ROWS):
        rows = query[first : first + ROWS]
        last = first + len(rows)
        slots = -(-(sequence.start + last) // block_size) * block_size
        scores = _scores(sequence.segments, rows, keys[:, :slots], block_size)
        weights = (scores * query.shape[-1] ** -0.5 + mask[first:last, :slots]).softmax(-1)
        out[first:last] = _weigh(weights.to(values.dtype), values[:, :slots])
    return out


def _scores(segments: tuple[Segment, ...], query: Tensor, keys: Tensor, block_size: int) -> Tensor:
    """Float32 [heads, count, slots]."""
    count, heads, head_dim = query.shape
    kv_heads, slots, _ = keys.shape
    scores, first = [], 0
    for segment in segments:
        last = min(slots, first + len(segment.blocks) * block_size)
        turned = query if segment.turn is None else rotate(query, segment.turn)
        grouped = turned.transpose(0, 1).reshape(kv_heads, -1, head_dim)
        products = at_least(grouped, dim=1) @ keys[:, first:last].transpose(1, 2)
        scores.append(products[:, : grouped.shape[1]].reshape(heads, count, last - first).float())
        first = last
    return torch.cat(scores, dim=-1)


def _weigh(weights: Tensor, values: Tensor) -> Tensor:
    """Values [kv_heads, slots, head_dim] weighted by [heads, count, slots]: [count, heads, head_dim]."""
    heads, count, slots = weights.shape
    kv_heads, _, head_dim = values.shape
    grouped = at_least(weights.view(kv_heads, -1, slots), dim=1)
    total = grouped[:, :, :TILE] @ values[:, :TILE]
    for first in range(TILE, slots, TILE):
        total = total + grouped[:, :, first : first + TILE] @ values[:, first : first + TILE]
    return total[:, : heads // kv_heads * count].reshape(heads, count, head_dim).transpose(0, 1)
