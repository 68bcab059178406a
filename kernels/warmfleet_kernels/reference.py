"""Plain torch: the definition of correct. Written to be read, not to be fast."""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from warmfleet_kernels.batch import Batch, Sequence
from warmfleet_kernels.rotation import Rotation, inverse, rotate, wide


def write_kv(pool: Tensor, layer: int, batch: Batch, key: Tensor, value: Tensor) -> None:
    """Store ``key`` and ``value`` ``[rows, kv_heads, head_dim]`` in each row's slot of ``layer``."""
    pool[batch.blocks, layer, 0, :, batch.offsets] = key
    pool[batch.blocks, layer, 1, :, batch.offsets] = value


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy whole blocks through all layers; every source is read before any target is written."""
    pool[targets] = pool[sources]


def rotate_write(
    pool: Tensor, layer: int, batch: Batch, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation
) -> Tensor:
    """Turn query and key ``[rows, heads, head_dim]`` by each row's angles, store key and value; the query."""
    write_kv(pool, layer, batch, rotate(key, rotation), value)
    return rotate(query, rotation)


def add_rms_norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``hidden + update`` ``[rows, width]``, and the same normed by its root mean square and weighted."""
    total = hidden if update is None else hidden + update
    return total, rms_norm(total, weight.shape, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of ``gate_up[rows, 2 * width]``, the gates first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """Causal attention of ``query[rows, heads, head_dim]`` over what each sequence has in the pool.

    Keys of a segment with a turn are rotated into the query's frame, which equals rotating the query
    into theirs. Softmax in float32 (float64 of a float64 query), scaled by head_dim ** -0.5. Slots past the
    context are not read.
    """
    out = torch.empty_like(query)
    for sequence in batch.sequences:
        rows = slice(sequence.first, sequence.first + sequence.count)
        out[rows] = _attend(pool, layer, sequence, wide(query[rows])).to(query.dtype)
    return out


def _attend(pool: Tensor, layer: int, sequence: Sequence, query: Tensor) -> Tensor:
    keys, values = (part.to(query.dtype) for part in _read(pool, layer, sequence))
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * query.shape[-1] ** -0.5
    positions = torch.arange(sequence.context, device=query.device)
    future = positions[None, :] > positions[sequence.start :, None]
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def _read(pool: Tensor, layer: int, sequence: Sequence) -> tuple[Tensor, Tensor]:
    """Keys in the query's frame and values, at least float32, [context, kv_heads, head_dim]."""
    keys, values = [], []
    for segment in sequence.segments:
        pages = wide(pool[list(segment.blocks), layer])
        key, value = pages.transpose(0, 1).transpose(2, 3).flatten(1, 2)
        keys.append(key if segment.turn is None else rotate(key, inverse(segment.turn)))
        values.append(value)
    return torch.cat(keys)[: sequence.context], torch.cat(values)[: sequence.context]
