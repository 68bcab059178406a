"""Booked prefixes against comparing chains with each other."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_router.index.prefixes import BookedPrefixes


def chain(parts: list[int]) -> array[int]:
    """A block's key depends on all blocks before it."""
    keys, parent = array("Q"), 17
    for part in parts:
        parent = hash((parent, part)) & 0xFFFF_FFFF_FFFF_FFFF
        keys.append(parent)
    return keys


def common(a: array[int], b: array[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


prompts = st.builds(
    lambda shared, own, tail: [1] * shared + [own] * tail,
    st.integers(0, 60),
    st.integers(2, 4),
    st.integers(0, 40),
)


@given(
    booked=st.lists(st.tuples(st.integers(0, 3), prompts), max_size=6),
    dropped=st.lists(st.integers(0, 5), max_size=3),
    asked=prompts,
)
@settings(deadline=None)
def test_overlaps_are_true_and_at_most_one_step_short(
    booked: list[tuple[int, list[int]]], dropped: list[int], asked: list[int]
) -> None:
    prefixes = BookedPrefixes(block_size=32)  # a mark every 4 blocks
    chains = [(worker, chain(parts)) for worker, parts in booked]
    marks = [prefixes.add(worker, keys) for worker, keys in chains]
    for i in sorted(set(dropped), reverse=True):
        if i < len(chains):
            prefixes.remove(chains[i][0], marks.pop(i))
            chains.pop(i)
    wanted = chain(asked)
    found = prefixes.overlaps(wanted)
    for worker in range(4):
        truth = max((common(keys, wanted) for w, keys in chains if w == worker), default=0)
        got = found.get(worker, 0)
        assert got <= truth
        assert got >= truth - truth % 4 or got == truth
        if any(keys == wanted for w, keys in chains if w == worker):
            assert got == len(wanted)
    for (worker, _), marked in zip(chains, marks, strict=True):
        prefixes.remove(worker, marked)
    assert len(prefixes) == 0


@given(held=st.integers(0, 40), asked=st.integers(0, 40), other=st.integers(0, 40))
def test_what_a_worker_holds_already_needs_no_marks(held: int, asked: int, other: int) -> None:
    prefixes = BookedPrefixes(block_size=32)
    keys = chain([1] * 40)
    everything = len(prefixes.add(0, keys))
    marked = prefixes.add(1, keys, held)
    assert len(marked) <= everything - max(held // 4 - 1, 0)
    wanted = chain([1] * asked + [2] * other)
    got = prefixes.overlaps(wanted).get(1, 0)
    assert got <= asked
    if asked - asked % 4 > held:
        assert got >= asked - asked % 4


def test_long_chains_take_few_marks() -> None:
    prefixes = BookedPrefixes(block_size=16)
    assert len(prefixes.add(0, range(512))) == 64
    assert len(prefixes.add(0, range(20_000))) < 400


def test_the_deepest_are_found_where_everybody_shares_a_root() -> None:
    prefixes = BookedPrefixes(block_size=32)
    for worker in range(1000):
        prefixes.add(worker, chain([1] * 8 + [worker + 2] * 8))
    prefixes.add(777, chain([1] * 8 + [5] * 8))
    found = prefixes.overlaps(chain([1] * 8 + [5] * 8))
    assert len(found) == 16
    assert found[3] == found[777] == 16
    assert set(found.values()) == {8, 16}
