"""What lies between the matrix products, against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from warmfleet_kernels import Batch, Rotation, fused, project_onto, reference

from tests.unit.kernels.paged import DEVICE, angles

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

EXAMPLES = 60 if DEVICE == "cuda" else 5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
dtypes = st.sampled_from([torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else []))
rows_of = st.integers(1, 5)
seeds = st.integers(0, 99)


def numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a.double() - b.double()).abs().max() <= TOLERANCE[a.dtype] * (1 + b.double().abs().max()))


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows_of, st.sampled_from([8, 100, 576, 4096]), dtypes, st.booleans(), seeds)
def test_add_rms_norm(rows, width, dtype, adds, seed) -> None:
    hidden, update = numbers(2, rows, width, dtype=dtype, seed=seed)
    weight = numbers(width, dtype=dtype, seed=seed + 1)
    found = fused.add_rms_norm(hidden, update if adds else None, weight, 1e-5)
    total, _ = reference.add_rms_norm(hidden, update if adds else None, weight, 1e-5)
    assert torch.equal(found[0], total)
    assert near(found[1], reference.add_rms_norm(total.double(), None, weight.double(), 1e-5)[1])


@pytest.mark.parametrize("rows", [3, 600])
def test_a_product_added_or_to_be_added(rows) -> None:
    hidden, x, weight = (numbers(n, 64, dtype=torch.float32, seed=n) for n in (rows, rows + 1, 64))
    wanted = hidden.double() + x[1:].double() @ weight.double().t()
    total, update = project_onto(hidden, x[1:], weight)
    assert near(total if update is None else total + update, wanted)


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows_of, st.sampled_from([8, 1000, 1536]), dtypes, seeds)
def test_silu_mul(rows, width, dtype, seed) -> None:
    gate_up = numbers(rows, 2 * width, dtype=dtype, seed=seed)
    assert near(fused.silu_mul(gate_up), reference.silu_mul(gate_up.double()))


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows_of, st.sampled_from([(4, 2, 4, 8), (3, 3, 16, 64), (6, 1, 24, 80)]), dtypes, seeds)
def test_rotate_write(rows, size, dtype, seed) -> None:
    """Of views of one matrix, into slots of their own; the last row is not to be written."""
    heads, kv_heads, block, dim = size
    qkv = numbers(rows, heads + 2 * kv_heads, dim, dtype=dtype, seed=seed)
    query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
    rotation = Rotation(*(part.to(DEVICE) for part in angles(torch.arange(rows) + seed, dim)))
    blocks = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).int().to(DEVICE)
    offsets = (blocks * 7 % block).int()
    pool = torch.full((rows, 2, 2, kv_heads, block, dim), torch.nan, dtype=dtype, device=DEVICE)
    wanted_pool = pool.clone()
    blocks[-1] = -1
    found = fused.rotate_write(pool[:, 1], blocks, offsets, query, key, value, rotation)
    part = Batch((), blocks[:-1].long(), offsets[:-1].long())
    first = Rotation(rotation.cos[:-1], rotation.sin[:-1])
    reference.rotate_write(wanted_pool, 1, part, query[:-1], key[:-1], value[:-1], first)
    assert near(found, reference.rotate(query.double(), rotation))
    assert torch.equal(pool.isnan(), wanted_pool.isnan())
    assert near(pool.nan_to_num(), wanted_pool.nan_to_num())
