"""Which implementation serves a tensor: Triton's on a GPU (imported only there), torch's elsewhere."""

from collections.abc import Sequence as Items

from torch import Tensor

from warmfleet_kernels import batch as host
from warmfleet_kernels import paged, reference
from warmfleet_kernels.batch import Batch, Sequence
from warmfleet_kernels.rotation import Rotation


def prepare(sequences: Items[Sequence], pool: Tensor) -> Batch:
    """The batch of ``sequences``, whose rows follow one another from 0 on without a gap."""
    if not pool.is_cuda:
        return host.prepare(sequences, pool)
    from warmfleet_kernels import device

    return device.prepare(sequences, pool)


def attention(pool: Tensor, layer: int, batch: Batch, query: Tensor) -> Tensor:
    """See ``reference.attention``."""
    if not pool.is_cuda:
        return paged.attention(pool, layer, batch, query)
    from warmfleet_kernels import device

    return device.attention(pool, layer, batch, query)


def warm_up(pool: Tensor, heads: int, rows: int, context: int) -> None:
    """Plan and compile what attention of ``heads`` query heads needs for chunks of up to ``rows`` rows on up
    to ``context`` tokens. Plans belong to the calling thread."""
    if pool.is_cuda:
        from warmfleet_kernels import prefill

        prefill.warm_up(pool, heads, rows, context)


def rotate_write(
    pool: Tensor, layer: int, batch: Batch, query: Tensor, key: Tensor, value: Tensor, rotation: Rotation
) -> Tensor:
    """See ``reference.rotate_write``."""
    if not pool.is_cuda:
        return reference.rotate_write(pool, layer, batch, query, key, value, rotation)
    from warmfleet_kernels import fused

    return fused.rotate_write(pool[:, layer], batch.blocks, batch.offsets, query, key, value, rotation)


def add_rms_norm(hidden: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.add_rms_norm``."""
    if not hidden.is_cuda:
        return reference.add_rms_norm(hidden, update, weight, eps)
    from warmfleet_kernels import fused

    return fused.add_rms_norm(hidden, update, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ``reference.silu_mul``."""
    if not gate_up.is_cuda:
        return reference.silu_mul(gate_up)
    from warmfleet_kernels import fused

    return fused.silu_mul(gate_up)
