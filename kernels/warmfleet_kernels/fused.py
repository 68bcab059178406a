"""What lies between a layer's matrix products, one kernel each. Triton; ``reference`` defines them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from warmfleet_kernels.rotation import Rotation


def add_rms_norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.add_rms_norm``; rows are contiguous."""
    rows, width = hidden.shape
    total = hidden if update is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    span = triton.next_power_of_2(width)
    _add_rms_norm[(rows,)](
        hidden,
        update,
        weight,
        total,
        normed,
        width,
        eps,
        ADD=update is not None,
        SPAN=span,
        num_warps=8 if span >= 4096 else 4,
    )
    return total, normed


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ``reference.silu_mul``."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    _silu_mul[(rows, triton.cdiv(width, 1024))](gate_up, out, width, TILE=1024, num_warps=4)
    return out


def rotate_write(
    pages: Tensor,
    blocks: Tensor,
    offsets: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: Rotation,
) -> Tensor:
    """The turned query ``[rows, heads, head_dim]``; the turned key and the value go to their slots.

    ``pages`` is one layer of a pool; a row whose block is negative is not written.
    """
    rows, heads, head_dim = query.shape
    _, _, kv_heads, _, _ = pages.shape
    out = torch.empty((rows, heads, head_dim), dtype=query.dtype, device=query.device)
    group = heads // kv_heads
    _rotate_write[(rows, kv_heads)](
        query,
        key,
        value,
        out,
        pages,
        blocks,
        offsets,
        *rotation,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        pages.stride(0),
        pages.stride(1),
        pages.stride(2),
        GROUP=group,
        QUERIES=triton.next_power_of_2(group),
        HEADS=heads,
        HALF=head_dim // 2,
        SPAN=triton.next_power_of_2(head_dim // 2),
        num_warps=1,
    )
    return out


@triton.jit
def _add_rms_norm(hidden, update, weight, total, normed, width, eps, ADD: tl.constexpr, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SPAN)
    inside = i < width
    x = tl.load(hidden + row * width + i, mask=inside, other=0.0)
    if ADD:
        x = (x.to(tl.float32) + tl.load(update + row * width + i, mask=inside, other=0.0).to(tl.float32)).to(
            x.dtype
        )
        tl.store(total + row * width + i, x, mask=inside)
    y = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(y * y, 0) / width + eps)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + i, (y * scale * w).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate_up, out, width, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < width
    gate = tl.load(gate_up + row * 2 * width + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_write(
    query,
    key,
    value,
    out,
    pages,
    blocks,
    offsets,
    cos,
    sin,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    stride_block,
    stride_value,
    stride_head,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    d = tl.arange(0, SPAN)
    inside = d < HALF
    c = tl.load(cos + row * HALF + d, mask=inside, other=0.0)
    s = tl.load(sin + row * HALF + d, mask=inside, other=0.0)

    g = tl.arange(0, QUERIES)
    real = (g[:, None] < GROUP) & inside[None, :]
    place = row * query_row + (kv_head * GROUP + g[:, None]) * query_head + d[None, :]
    low = tl.load(query + place, mask=real, other=0.0).to(tl.float32)
    high = tl.load(query + place + HALF, mask=real, other=0.0).to(tl.float32)
    place = (row * HEADS + kv_head * GROUP + g[:, None]) * (2 * HALF) + d[None, :]
    kind = out.dtype.element_ty
    tl.store(out + place, (low * c[None, :] - high * s[None, :]).to(kind), mask=real)
    tl.store(out + place + HALF, (high * c[None, :] + low * s[None, :]).to(kind), mask=real)

    block = tl.load(blocks + row).to(tl.int64)
    written = inside & (block + d * 0 >= 0)
    slot = pages + block * stride_block + kv_head * stride_head + tl.load(offsets + row) * (2 * HALF) + d
    kind = pages.dtype.element_ty
    low = tl.load(key + row * key_row + kv_head * key_head + d, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(key + row * key_row + kv_head * key_head + HALF + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(slot, (low * c - high * s).to(kind), mask=written)
    tl.store(slot + HALF, (high * c + low * s).to(kind), mask=written)
    source = value + row * value_row + kv_head * value_head + d
    slot += stride_value
    tl.store(slot, tl.load(source, mask=inside, other=0.0).to(kind), mask=written)
    tl.store(slot + HALF, tl.load(source + HALF, mask=inside, other=0.0).to(kind), mask=written)
