"""Rotary position embedding applied to queries and keys."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the angles, float32 ``[rows, head_dim / 2]``; a single row serves all."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """``x[rows, heads, head_dim]`` turned by its row's angles; dimension i is paired with i + head_dim / 2.

    Computed in float32 (float64 of a float64 ``x``), returned in the dtype of ``x``.
    """
    cos, sin = rotation.cos.unsqueeze(1), rotation.sin.unsqueeze(1)
    low, high = wide(x).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def inverse(rotation: Rotation) -> Rotation:
    """The rotation by the negated angles."""
    return Rotation(rotation.cos, -rotation.sin)
