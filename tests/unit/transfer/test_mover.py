"""Moves that are launched again and again from the same memory: on a GPU recorded, else interpreted."""

import pytest
import torch
from torch import Tensor
from warmfleet_proto import checksum
from warmfleet_worker.engine.mover import Mover, Sums, sum_constants

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
BLOCKS, WORDS = 9, 1500


class Rig:
    def __init__(self, most: int = 4) -> None:
        self.pool = pool_of(1)
        self.slabs = [torch.zeros_like(self.pool) for _ in range(3)]
        constants = sum_constants(self.pool[0].nbytes, self.pool.device)
        self.mover = Mover(self.pool, constants, most)


def pool_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (BLOCKS, WORDS)
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=generator).to(DEVICE)


def summed(blocks: Tensor) -> list[tuple[int, ...]]:
    return [checksum.block_sum(block.numpy().tobytes()) for block in blocks.cpu()]


def told(sums: Sums) -> list[tuple[int, ...]]:
    return [tuple(row) for row in sums.tolist()]


def test_moves_of_all_sizes_there_and_back() -> None:
    rig = Rig()
    slab = rig.slabs[0]
    for numbers in ([3], [8, 0, 5, 2], [7, 1], [*range(BLOCKS)], [4]):  # more than expected as well
        slab.zero_()
        wanted = rig.pool[numbers].clone()
        assert told(rig.mover.gather(numbers, slab.data_ptr())()) == summed(wanted)
        assert torch.equal(slab[: len(numbers)], wanted)
        assert not slab[len(numbers) :].any(), "nothing beside it"
        before = rig.pool.clone()
        rig.pool[numbers] = 0
        assert told(rig.mover.scatter(slab.data_ptr(), numbers)()) == summed(wanted)
        assert torch.equal(rig.pool, before)


def test_several_under_way_keep_what_is_theirs_and_tell_it_again() -> None:
    rig = Rig()
    numbers = [[1, 2], [5], [8, 3, 0]]
    for _ in range(2):  # the second time with what the first has left
        moving = [rig.mover.gather(n, s.data_ptr()) for n, s in zip(numbers, rig.slabs, strict=True)]
        last = told(moving[2]())
        assert [told(each()) for each in moving[:2]] == [summed(rig.pool[n]) for n in numbers[:2]]
        assert told(rig.mover.gather([4], rig.slabs[0].data_ptr())()) == summed(rig.pool[[4]])
        assert told(moving[2]()) == last == summed(rig.pool[numbers[2]])


def test_what_is_not_waited_for_is_not_used_anew() -> None:
    rig = Rig()
    kept = rig.mover.gather([1], rig.slabs[0].data_ptr())
    for number in range(2, 6):
        rig.mover.gather([number], rig.slabs[1].data_ptr())()
    assert told(kept()) == summed(rig.pool[[1]])


def test_what_is_prepared_moves_nothing() -> None:
    rig = Rig()
    before = rig.pool.clone()
    rig.mover.prepare(gathers=2, scatters=2)
    rig.mover.wait()
    assert torch.equal(rig.pool, before)
    assert told(rig.mover.gather([6, 7], rig.slabs[0].data_ptr())()) == summed(rig.pool[[6, 7]])
