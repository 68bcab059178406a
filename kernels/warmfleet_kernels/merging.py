"""Attention over the union of sets of keys, from attention over each of them. Triton."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Part(NamedTuple):
    """Attention over some of the keys."""

    out: Tensor  # [rows, heads, head_dim]
    lse: Tensor  # float32 [heads, rows], natural


def merge(parts: list[Part], out: Tensor) -> None:
    """Attention over the union of the parts' keys."""
    total = parts[0]
    for n, part in enumerate(parts[1:], start=2):
        last = n == len(parts)
        target = out if last else torch.empty_like(out, dtype=torch.float32)
        total = _merge_pair(total, part, target)
    if len(parts) == 1:
        out.copy_(total.out)


def _merge_pair(a: Part, b: Part, out: Tensor) -> Part:
    rows, heads, head_dim = out.shape
    lse = torch.empty((heads, rows), dtype=torch.float32, device=out.device)
    _merge_two[(rows,)](
        *a,
        *b,
        out,
        lse,
        a.out.stride(0),
        a.out.stride(1),
        a.lse.stride(0),
        b.out.stride(0),
        b.out.stride(1),
        b.lse.stride(0),
        rows,
        HEADS=heads,
        HEAD_DIM=head_dim,
        ROWS=triton.next_power_of_2(heads),
        DIM=triton.next_power_of_2(head_dim),
        num_warps=4,
    )
    return Part(out, lse)


@triton.jit
def _merge_two(
    a,
    a_lse,
    b,
    b_lse,
    out,
    lse,
    a_row,
    a_head,
    a_lse_head,
    b_row,
    b_head,
    b_lse_head,
    rows,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    real = h < HEADS
    used = real[:, None] & (d[None, :] < HEAD_DIM)
    x = tl.load(a_lse + h * a_lse_head + row, mask=real, other=0.0)
    y = tl.load(b_lse + h * b_lse_head + row, mask=real, other=0.0)
    weight = tl.sigmoid(x - y)[:, None]
    top = tl.maximum(x, y)
    tl.store(lse + h * rows + row, top + tl.log(tl.exp(x - top) + tl.exp(y - top)), mask=real)
    first = tl.load(a + row * a_row + h[:, None] * a_head + d[None, :], mask=used, other=0.0).to(tl.float32)
    second = tl.load(b + row * b_row + h[:, None] * b_head + d[None, :], mask=used, other=0.0).to(tl.float32)
    both = first * weight + second * (1 - weight)
    tl.store(
        out + (row * HEADS + h[:, None]) * HEAD_DIM + d[None, :], both.to(out.dtype.element_ty), mask=used
    )
