"""Products whose rows do not depend on how many rows there are.

A BLAS sums products of few rows in another order than those of many, and on several threads those of other
counts too (MKL 2024.2: fewer than four, on newer CPUs fewer than 16; five and seven on two threads). In
float32 that shows: the logits of a real model move by 1e-4 between a decode and a chunk. Weights that oneDNN
has laid out once are summed alike for two rows and more, on any number of threads, and a decode step reads
them in half the time (measured on AVX512, both dtypes).
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

LEAST = 16
LEAST_PACKED = 2
_SUMMED = 512  # rows, from which on a GPU's product adds the residual faster than the norm behind it
_PLANNED_ROWS = 64  # a layout good for steps that decode, and no worse than plain ones for long chunks


def at_least(x: Tensor, rows: int = LEAST, dim: int = 0) -> Tensor:
    """``x`` with zero rows added along ``dim`` until there are ``rows``."""
    missing = rows - x.shape[dim]
    if missing <= 0:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat((x, x.new_zeros(shape)), dim)


def pack(weight: Tensor) -> Tensor:
    """``weight[out, in]`` as ``project`` likes it best, and nothing else can read; on a GPU as it is."""
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PLANNED_ROWS)
    return packed


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x[rows, in]`` times ``weight[out, in]``, packed or not, and ``bias[out]``."""
    exact = x.dtype == torch.float32
    if weight.is_mkldnn:
        rows = at_least(x, LEAST_PACKED) if exact else x
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    else:
        product = linear(at_least(x) if exact else x, weight, bias)
    return product[: len(x)]


def project_onto(hidden: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """``hidden`` with ``project(x, weight)`` added in place, or the two for ``add_rms_norm`` to add."""
    if hidden.is_cuda and len(x) >= _SUMMED:
        return hidden.addmm_(x, weight.t()), None
    return hidden, project(x, weight)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies ``dtype`` on this CPU, of a kind that it was measured on."""
    measured = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not torch.backends.mkldnn.is_available() or not measured:  # type: ignore[no-untyped-call]
        return False
    ops = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(ops._is_mkldnn_fp16_supported())
    return dtype == torch.float32
