"""To the last bit: a float32 row is the same however its sequence was cut."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from warmfleet_kernels.batch import Segment, Sequence, prepare
from warmfleet_kernels.paged import attention
from warmfleet_kernels.rows import pack, project

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="measured with MKL")

HEADS, KV_HEADS, DIM, BLOCK, CONTEXT = 9, 3, 64, 16, 450
CUTS = [
    [*range(0, CONTEXT, 64), CONTEXT],
    [0, 1, 2, 5, 38, 73, 139, 301, 449, CONTEXT],
    [0, 190, 193, 385, 386, CONTEXT],
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("cuts", CUTS)
def test_attention(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(CONTEXT, HEADS, DIM, generator=generator)
    blocks = torch.randperm(40, generator=generator).tolist()[: -(-CONTEXT // BLOCK)]
    pool = torch.randn(40, 1, 2, KV_HEADS, BLOCK, DIM, generator=generator)

    def rows(first: int, last: int) -> Tensor:
        table = tuple(blocks[: -(-last // BLOCK)])
        batch = prepare([Sequence(0, last - first, first, (Segment(table),))], pool)
        return attention(pool, 0, batch, query[first:last])

    assert torch.equal(torch.cat([rows(*cut) for cut in pairwise(cuts)]), rows(0, CONTEXT))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("shape", [(960, 576), (576, 1536)])
def test_projection(cuts: list[int], shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=generator), torch.randn(CONTEXT, shape[1], generator=generator)
    for each in (weight, pack(weight)):
        parts = [project(x[first:last], each) for first, last in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), project(x, each))


def test_packed_weights_make_the_same_products_on_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(576, 1536, generator=generator), torch.randn(301, 1536, generator=generator)
    packed = pack(weight)
    whole = project(x, packed)
    assert (whole - x @ weight.T).abs().max() < 1e-3
    torch.set_num_threads(2)
    try:
        for rows in (1, 5, 7, 300):
            assert torch.equal(project(x[:rows], packed), whole[:rows])
    finally:
        torch.set_num_threads(1)
