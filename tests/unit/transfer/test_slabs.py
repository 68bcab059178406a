"""Slabs: bounded, shared evenly, and nobody waits for ever."""

from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_worker.transfer.slabs import Slabs


def test_one_owner_may_have_all_and_two_have_half_each() -> None:
    slabs, first, second = Slabs(4, 8), object(), object()
    assert slabs.join(first)
    held = [slabs.take(first, wait=False) for _ in range(5)]
    assert [slab is not None for slab in held] == [True] * 4 + [False]
    assert slabs.join(second)
    assert slabs.take(second, wait=False) is None
    for slab in held[:3]:
        slabs.give_back(first, slab)
    assert slabs.take(first, wait=False) is not None
    assert slabs.take(first, wait=False) is None, "its half is two"
    assert slabs.take(second, wait=False) is not None
    assert slabs.take(second, wait=False) is not None
    assert slabs.taken == 4


def test_no_more_owners_than_slabs() -> None:
    slabs = Slabs(2, 8)
    owners = [object() for _ in range(3)]
    assert [slabs.join(owner) for owner in owners] == [True, True, False]
    slabs.leave(owners[0])
    assert slabs.join(owners[2])


def test_leaving_wakes_who_waits() -> None:
    slabs, owner = Slabs(1, 8), object()
    slabs.join(owner)
    slab = slabs.take(owner, wait=True)
    assert slab is not None
    got: list[memoryview | None] = [slab]
    waiting = Thread(target=lambda: got.append(slabs.take(owner, wait=True)))
    waiting.start()
    slabs.leave(owner)
    waiting.join(5)
    assert got[1:] == [None]
    slabs.give_back(owner, slab)
    assert slabs.taken == 0


def test_a_slab_given_back_goes_to_who_waits() -> None:
    slabs, first, second = Slabs(2, 8), object(), object()
    slabs.join(first)
    held = [slabs.take(first, wait=False) for _ in range(2)]
    slabs.join(second)
    got: list[memoryview | None] = []
    waiting = Thread(target=lambda: got.append(slabs.take(second, wait=True)))
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
        if takes and (slab := slabs.take(owner, wait=False)) is not None:
            held[owner].append(slab)
        elif not takes and held[owner]:
            slabs.give_back(owner, held[owner].pop())
        everything = [id(slab) for each in held.values() for slab in each]
        assert len(everything) == len(set(everything)) == slabs.taken <= 3
        assert all(len(each) <= 3 for each in held.values())


def test_a_slab_that_there_was_no_memory_for_can_be_had_later() -> None:
    short = [True]

    def allocate(size: int) -> memoryview:
        if short.pop():
            raise MemoryError("no room")
        return memoryview(bytearray(size))

    slabs, owner = Slabs(1, 8, allocate), object()
    assert slabs.join(owner)
    with pytest.raises(MemoryError):
        slabs.take(owner, wait=False)
    short.append(False)
    assert slabs.taken == 0
    assert slabs.take(owner, wait=False) is not None
