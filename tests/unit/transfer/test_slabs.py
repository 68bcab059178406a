"""Slabs: bounded, shared evenly, and nobody waits for ever."""

from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.slabs import Slabs

from tests.unit.transfer.lanes import Pool


def taken(slabs: Slabs, owner: object) -> memoryview:
    """One that can be had at once."""
    slab = slabs.take(owner)
    assert slab is not None
    return slab


def test_one_owner_may_have_all_and_two_have_half_each() -> None:
    slabs, first, second = Slabs(4, 8), object(), object()
    assert slabs.join(first)
    held = [taken(slabs, first) for _ in range(4)]
    assert not slabs.exceeded(first)
    assert slabs.join(second)
    for slab in held[:2]:
        assert slabs.exceeded(first)
        slabs.give_back(first, slab)
    assert not slabs.exceeded(first), "its half is two"
    for _ in range(2):
        taken(slabs, second)
        assert not slabs.exceeded(second)
    assert slabs.taken == 4
    slabs.leave(second)
    slabs.leave(first)
    assert not slabs.exceeded(first), "who has left gives back as it ends"


def test_beyond_its_part_an_owner_waits_though_some_are_spare() -> None:
    slabs, first, second = Slabs(2, 8), object(), object()
    assert slabs.join(first)
    assert slabs.join(second)
    taken(slabs, first)
    got: list[memoryview | None] = []
    waiting = Thread(target=lambda: got.append(slabs.take(first)))
    waiting.start()
    taken(slabs, second)
    assert slabs.taken == 2, "the spare one was left to the second"
    slabs.leave(first)
    waiting.join(5)
    assert got == [None]


def test_a_pull_takes_nothing_more_while_it_holds_more_than_its_part() -> None:
    slabs = Slabs(2, 64)
    engine: Any = Pool.random(4, 64)
    first = PoolHaul(engine, slabs, range(4), range(4), lambda: None)
    held = [first.slab(), first.slab()]
    assert first.take(1) is not None
    second = PoolHaul(engine, slabs, range(4), range(4), lambda: None)
    assert first.take(1) is None
    assert held[0] is not None
    first.give_back(held[0])
    assert first.take(1) is not None
    assert second.slab() is held[0]


def test_no_more_owners_than_slabs() -> None:
    slabs = Slabs(2, 8)
    owners = [object() for _ in range(3)]
    assert [slabs.join(owner) for owner in owners] == [True, True, False]
    slabs.leave(owners[0])
    assert slabs.join(owners[2])


def test_leaving_wakes_who_waits() -> None:
    slabs, owner = Slabs(1, 8), object()
    slabs.join(owner)
    slab = taken(slabs, owner)
    got: list[memoryview | None] = [slab]
    waiting = Thread(target=lambda: got.append(slabs.take(owner)))
    waiting.start()
    slabs.leave(owner)
    waiting.join(5)
    assert got[1:] == [None]
    slabs.give_back(owner, slab)
    assert slabs.taken == 0


def test_a_slab_given_back_goes_to_who_waits() -> None:
    slabs, first, second = Slabs(2, 8), object(), object()
    slabs.join(first)
    held = [taken(slabs, first) for _ in range(2)]
    slabs.join(second)
    got: list[memoryview | None] = []
    waiting = Thread(target=lambda: got.append(slabs.take(second)))
    waiting.start()
    slabs.give_back(first, held[0])
    waiting.join(5)
    assert got == [held[0]]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_never_more_than_there_are(moves: list[tuple[int, bool]]) -> None:
    slabs = Slabs(3, 8)
    held: dict[int, list[memoryview]] = {owner: [] for owner in range(3) if slabs.join(owner)}
    for owner, takes in moves:
        if owner not in held:
            continue
        if takes and not held[owner]:  # its part of three
            held[owner].append(taken(slabs, owner))
        elif not takes and held[owner]:
            slabs.give_back(owner, held[owner].pop())
        everything = [id(slab) for each in held.values() for slab in each]
        assert len(everything) == len(set(everything)) == slabs.taken <= 3


def test_a_slab_that_there_was_no_memory_for_can_be_had_later() -> None:
    short = [True]

    def allocate(size: int) -> memoryview:
        if short.pop():
            raise MemoryError("no room")
        return memoryview(bytearray(size))

    slabs, owner = Slabs(1, 8, allocate), object()
    assert slabs.join(owner)
    with pytest.raises(MemoryError):
        slabs.take(owner)
    short.append(False)
    assert slabs.taken == 0
    assert slabs.take(owner) is not None
