"""Rotary frequencies and the scaling rules that keep them independent of a sequence's length."""

from math import pi

import torch
from torch import Tensor
from warmfleet_kernels import Rotation


class Rope:
    """Angles of a model's rotary embedding. Computed in float64: a delta must undo a position exactly."""

    def __init__(self, theta: float, head_dim: int, factors: tuple[float, ...], device: torch.device) -> None:
        frequencies = _frequencies(theta, head_dim)
        if factors:
            frequencies = frequencies / torch.tensor(factors, dtype=torch.float64)
        self._host, self._frequencies = frequencies, frequencies.to(device)

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of each position (``[rows]``, negative ones too)."""
        return _rotation(positions, self._frequencies)

    def turn(self, delta: int) -> Rotation:
        """One row, on the host: what takes a query ``delta`` positions on."""
        return _rotation(torch.tensor([delta]), self._host)


def linear_factors(factor: float, head_dim: int) -> tuple[float, ...]:
    """Position interpolation: every frequency divided by the same factor."""
    return (factor,) * (head_dim // 2)


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float, high: float, trained: float
) -> tuple[float, ...]:
    """Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between blended.

    ``low`` and ``high`` bound the blend in wavelengths per trained context (``trained`` positions).
    """
    turns = trained * _frequencies(theta, head_dim) / (2 * pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return tuple((1 / ((1 - smooth) / factor + smooth)).tolist())


def _rotation(positions: Tensor, frequencies: Tensor) -> Rotation:
    angles = positions.double()[:, None] * frequencies
    return Rotation(angles.cos().float(), angles.sin().float())


def _frequencies(theta: float, head_dim: int) -> Tensor:
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
