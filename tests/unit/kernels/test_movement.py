"""Blocks between pool and slab, and the sum that is made on the way."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto import checksum

pytest.importorskip("triton")

from warmfleet_kernels.movement import SumConstants, gather_blocks, scatter_blocks

from tests.unit.kernels.paged import DEVICE

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


def constants(block_bytes: int) -> SumConstants:
    parts = checksum.keys(), checksum.rungs(checksum.rows_of(block_bytes))
    return SumConstants(*(torch.from_numpy(part.view("int64")).to(DEVICE) for part in parts))


def unsigned(sums: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(half % 2**64 for half in row) for row in sums.tolist()]


def blocks_of(count: int, words: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31 - 1, (count, words), dtype=torch.int32, generator=generator)


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([1, 1000, 1024, 4096, 5000, 9216]),
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_gather_copies_and_sums(words, table, seed) -> None:
    pool = blocks_of(8, words, seed).to(DEVICE)
    slab = torch.full((len(table) + 1, words), 7, dtype=torch.int32, device=DEVICE)
    chosen = torch.tensor(table, dtype=torch.int32, device=DEVICE)
    sums = gather_blocks(pool, chosen, slab, constants(4 * words))
    assert torch.equal(slab[:-1], pool[table])
    assert (slab[-1] == 7).all()
    assert sums is not None
    assert unsigned(sums) == [checksum.block_sum(block.numpy().tobytes()) for block in slab[:-1].cpu()]


@settings(max_examples=3, deadline=None)
@given(st.sampled_from([3, 2048, 5000]), st.permutations(range(6)), st.integers(0, 99))
def test_scatter_is_the_way_back(words, order, seed) -> None:
    slab = blocks_of(4, words, seed).to(DEVICE)
    pool = torch.full((6, words), 7, dtype=torch.int32, device=DEVICE)
    chosen = torch.tensor(order[:4], dtype=torch.int32, device=DEVICE)
    sums = scatter_blocks(slab, pool, chosen, constants(4 * words))
    assert torch.equal(pool[order[:4]], slab)
    assert (pool[order[4:]] == 7).all()
    back = torch.empty_like(slab)
    again = gather_blocks(pool, chosen, back, constants(4 * words))
    assert sums is not None
    assert torch.equal(sums, again)
    assert gather_blocks(pool, chosen, back) is None


def test_sum_has_known_answers() -> None:
    """The definition must never change: sums are stored beside blocks."""
    data = hashlib.shake_256(b"a block").digest(8448)
    assert checksum.block_sum(data) == GOLDEN
    for at in (0, 4095, 4096, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 128
        low, high = checksum.block_sum(bytes(changed))
        assert low != GOLDEN[0]
        assert high != GOLDEN[1]
    moved = (data[4096:8192] + data[:4096] + data[8192:], data[:-8] + data[-4:] + data[-8:-4])
    assert GOLDEN not in [checksum.block_sum(each) for each in moved]


GOLDEN = (14110952207862535016, 1484246050739589018)
