"""Copies between a device's pool and the host's memory: on a GPU where there is one, else interpreted."""

import random
from typing import Any

import pytest
import torch
from warmfleet_proto import checksum
from warmfleet_worker.engine.access import host_memory
from warmfleet_worker.engine.mover import Mover, _Sheet
from warmfleet_worker.tiers.copies import runs
from warmfleet_worker.tiers.device_copies import DeviceCopies

from tests.unit.tiers.spoils import SPOILS, spoilt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
BLOCKS, SLOTS, WORDS = 12, 16, 1500
WRONG = 1000 if DEVICE == "cuda" else 10  # copies of each kind: interpreted, each takes some ms


class Rig:
    """A pool, slots, and halves of four blocks: both are filled more than once."""

    def __init__(self, blocks: int = BLOCKS, slots: int = SLOTS, words: int = WORDS) -> None:
        generator = torch.Generator().manual_seed(5)
        shape = (blocks, words)
        made = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=generator)
        self.pool = made.to(DEVICE)
        self.size = self.pool[0].nbytes
        self.memory = host_memory(slots * self.size, pinned=DEVICE == "cuda")
        self.copies = DeviceCopies(self.pool, self.memory, 4 * self.size)

    def slot(self, number: int) -> memoryview:
        return self.memory[number * self.size : (number + 1) * self.size]

    def block(self, number: int) -> bytes:
        return self.pool[number].cpu().numpy().tobytes()


def test_down_and_up_again() -> None:
    rig, chance = Rig(), random.Random(2)
    blocks = chance.sample(range(BLOCKS), 10)
    slots = [3, 4, 5, 0, 9, 10, 15, 1, 2, 7]
    before = [rig.block(block) for block in blocks]
    sums = rig.copies.down(blocks, slots)
    assert [bytes(rig.slot(slot)) for slot in slots] == before
    for copy, total in zip(before, sums, strict=True):
        low, high = checksum.block_sum(copy)
        assert total == low.to_bytes(8, "little") + high.to_bytes(8, "little")
    assert rig.copies.sum(rig.slot(9)) == sums[4]
    assert rig.copies.sum(memoryview(bytearray(before[0]))) == sums[0]
    rig.pool.zero_()
    other = chance.sample(range(BLOCKS), 10)
    assert rig.copies.up(slots, other, sums) == 10
    assert [rig.block(block) for block in other] == before
    assert all(not any(rig.block(block)) for block in set(range(BLOCKS)) - set(other))


@pytest.mark.parametrize("wrong", [0, 5, 9])
def test_the_first_wrong_copy_ends_what_counts(wrong: int) -> None:
    rig = Rig()
    slots, blocks = list(range(10)), list(range(10))
    sums = rig.copies.down(blocks, slots)
    rig.slot(wrong)[100] ^= 4
    assert rig.copies.up(slots, blocks, sums) == wrong


@pytest.mark.parametrize("how", SPOILS)
def test_every_wrong_copy_is_seen(how: str) -> None:
    rig, chance, places = Rig(WRONG, WRONG, 64), random.Random(4), range(WRONG)
    sums = rig.copies.down(places, places)
    copies = [bytes(rig.slot(place)) for place in places]
    assert rig.copies.up(places, places, sums) == WRONG
    for place in places:
        rig.slot(place)[:] = spoilt(how, copies, place, chance)
    assert not any(rig.copies.up([place], [place], [sums[place]]) for place in places)


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("launched", [False, True])
def test_a_part_that_fails_ends_when_the_earlier_ones_have(
    monkeypatch: pytest.MonkeyPatch, way: str, launched: bool
) -> None:
    """Their blocks may be another's next. The second part fails before or after its kernel was launched."""
    rig, order = Rig(), list[object]()
    begin, wait = _Sheet.begin, Mover.wait

    def beginning(self: _Sheet, *arguments: Any) -> None:
        order.append("begin")
        if len(order) == 2 and not launched:
            raise MemoryError
        begin(self, *arguments)
        if len(order) == 2:
            raise MemoryError

    def waiting(self: Mover) -> None:
        order.append(self)
        wait(self)

    sums = rig.copies.down(range(8), range(8))
    monkeypatch.setattr(_Sheet, "begin", beginning)
    monkeypatch.setattr(Mover, "wait", waiting)
    with pytest.raises(MemoryError):
        rig.copies.up(range(8), range(8), sums) if way == "up" else rig.copies.down(range(8), range(8))
    used = rig.copies._upward if way == "up" else rig.copies._downward
    assert {used.mover, used._copier} <= set(order[2:])


def test_as_many_moves_are_prepared_as_can_be_under_way() -> None:
    copies = Rig(slots=16).copies
    assert (len(copies._upward.mover._scatters), len(copies._downward.mover._gathers)) == (4, 4)


def test_runs_are_pieces_of_memory() -> None:
    assert list(runs([])) == []
    assert list(runs([4, 5, 6, 2, 3, 9])) == [(0, 3, 4), (3, 5, 2), (5, 6, 9)]
