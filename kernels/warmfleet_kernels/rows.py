"""Products whose rows do not depend on how many rows there are.

A BLAS sums products of very few rows in another order than those of many (MKL 2024.2: fewer than four).
In float32 that shows: the logits of a real model move by 1e-4 between a decode and a chunk. With a few
rows of zeros they are the same to the last bit.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

LEAST = 4


def at_least(x: Tensor, rows: int = LEAST, dim: int = 0) -> Tensor:
    """``x`` with zero rows added along ``dim`` until there are ``rows``."""
    missing = rows - x.shape[dim]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat((x, x.new_zeros(shape)), dim)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x[rows, in]`` times ``weight[out, in]``, and ``bias[out]``; half precision takes the fast way."""
    if x.dtype != torch.float32:
        return linear(x, weight, bias)
    return linear(at_least(x), weight, bias)[: len(x)]
