"""Prefixes that are asked for again, and what a copy of one would save."""

from array import array
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.hashing import root_hash
from warmfleet_router.prices import wanted as module
from warmfleet_router.prices.wanted import MAX_DUE, MEMORY_S, MOST_HOLDERS, Prefix, Wanted

BLOCK = 512
FINGERPRINT = b"f" * 32


def keys(*runs: tuple[int, int]) -> "array[int]":
    """Each run is (first key, how many)."""
    return array("Q", [first + i for first, count in runs for i in range(count)])


def asked(wanted: Wanted, of: "array[int]", shared: int, now: float = 0.0, salt: bytes = b"") -> Prefix:
    prefix = wanted.asked(memoryview(of), shared * BLOCK, salt, now)
    assert prefix is not None
    return prefix


def test_of_a_conversation_all_of_it_is_wanted() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    for turn in range(4, 8):
        prefix = asked(wanted, keys((1, turn)), turn - 1)
        assert prefix.keys == keys((1, turn)).tobytes()
    assert prefix.requests(0.0) == 4.0, "the same one past the next mark"
    assert len(wanted) == 1


def test_of_a_system_prompt_what_its_users_have_in_common() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    for user in range(3):
        prefix = asked(wanted, keys((1, 3), (100 * (user + 1), 2)), 3)
    assert prefix.keys == keys((1, 3)).tobytes()
    assert (prefix.requests(0.0), len(wanted)) == (3.0, 1)


@given(st.binary(max_size=6), st.binary(max_size=6), st.binary(max_size=6))
def test_what_two_have_in_common(start: bytes, one: bytes, other: bytes) -> None:
    pairs = zip(start + one, start + other, strict=False)
    assert module._common(start + one, start + other) == len(
        list(takewhile(lambda pair: pair[0] == pair[1], pairs))
    )


def test_a_tenants_prefix_has_its_root() -> None:
    prefix = asked(Wanted(FINGERPRINT, BLOCK), keys((1, 4)), 4, salt=b"t")
    assert prefix.root == root_hash(FINGERPRINT, BLOCK, salt=b"t")


def test_what_shares_too_little_is_not_remembered() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    assert wanted.asked(memoryview(keys((1, 9))), BLOCK, b"", 0.0) is None
    assert not len(wanted)


def test_demand_fades_and_the_hottest_come_first() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    for _ in range(3):
        old = asked(wanted, keys((1, 4)), 4)
    new = asked(wanted, keys((50, 4)), 4, now=2 * MEMORY_S)
    assert old.requests(2 * MEMORY_S) == pytest.approx(3 * 0.1353, rel=1e-3)
    assert wanted.hottest(0.0) == [old, new]
    asked(wanted, keys((50, 4)), 4, now=2 * MEMORY_S)
    assert wanted.hottest(2 * MEMORY_S) == [new, old]


def test_memory_is_bounded_and_the_longest_unused_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100 * 8)
    wanted = Wanted(FINGERPRINT, BLOCK)
    first = asked(wanted, keys((1, 40)), 40)
    second = asked(wanted, keys((1000, 40)), 40)
    asked(wanted, keys((1, 40)), 40)
    third = asked(wanted, keys((2000, 40)), 40)
    assert set(wanted.hottest(0.0)) == {first, third}
    assert second not in wanted.hottest(0.0)


def test_what_has_been_computed_is_due_once_and_in_order() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    made = [asked(wanted, keys((1000 * n, 4)), 4) for n in range(MAX_DUE + 1)]
    for prefix in [*made, made[0]]:
        wanted.computed(prefix)
    assert wanted.take_due(2) == made[:2]
    assert wanted.take_due(MAX_DUE) == made[2:MAX_DUE], "one more than can be kept"
    assert wanted.take_due(1) == []


def test_a_copy_saves_what_those_with_more_holders_do_not_lose() -> None:
    wanted = Wanted(FINGERPRINT, BLOCK)
    assert wanted.saves(1) == 0.0
    wanted.lost(1, 0.5, 1.0, 0.0)
    assert wanted.saves(1) == 0.25, "until it is known, half of it"
    wanted.lost(2, 0.1, 1.0, 0.0)
    assert wanted.saves(1) == pytest.approx(0.4)
    wanted.lost(MOST_HOLDERS + 3, 0.08, 1.0, 0.0)
    assert wanted.saves(8) == pytest.approx(0.01)
    wanted.lost(1, 0.0, 1.0, 10 * MEMORY_S)
    assert wanted.saves(1) < 0.0, "what was lost long ago counts for little"
