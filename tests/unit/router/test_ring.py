"""The homes of keys on the ring: C against its definition, and what goes wrong."""

import gc
import sys
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.index.index import native
from warmfleet_router.policy.ring import homes, homes_python
from warmfleet_router.prices.pricing import shared_prefill, starting_rates

needs_native = pytest.mark.skipif(not native, reason="no native index was built")

RATES = starting_rates((), shared_prefill())
keys = st.sampled_from([0, 5, 6, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Sequence[int], list[Worker], list[int], frozenset[Worker], float]:
    fleet = [Worker(f"w{i}", RATES, flying=draw(st.integers(0, 3))) for i in range(4)]
    points = sorted(draw(st.lists(keys, min_size=1, max_size=12)))
    owners = [fleet[draw(st.integers(0, 3))] for _ in points]
    members = frozenset(worker for worker in fleet if draw(st.integers(0, 3)))  # most of them
    asked = draw(st.lists(keys | st.sampled_from(points), min_size=1, max_size=6))
    return array("Q", points), owners, asked, members, draw(st.sampled_from([-1, 0, 1, 1.5, 2, 3]))


@needs_native
@given(questions())
def test_homes_are_equal(
    question: tuple[Sequence[int], list[Worker], list[int], frozenset[Worker], float],
) -> None:
    assert homes(*question) == homes_python(*question)


@needs_native
def test_it_was_built_with_the_index() -> None:
    assert homes is not homes_python


@needs_native
def test_there_are_no_homes_without_points_or_members() -> None:
    worker = Worker("w", RATES)
    assert homes(array("Q"), [], [1], {worker}, 1.0) == [None]
    assert homes(array("Q", [3]), [worker], [1, 5], set(), 1.0) == [None, None]


@needs_native
def test_what_goes_wrong_is_told() -> None:
    worker = Worker("w", RATES)
    with pytest.raises(ValueError, match="2 points"):
        homes(array("Q", [1, 2]), [worker], [1], {worker}, 1.0)
    with pytest.raises(OverflowError):
        homes(array("Q", [1]), [worker], [-1], {worker}, 1.0)
    with pytest.raises(TypeError):
        homes(array("Q", [1]), ["no worker"], [1], {"no worker"}, 1.0)  # type: ignore[list-item, arg-type]
    with pytest.raises(TypeError):
        homes(array("Q", [1]), [worker], [1], 7, 1.0)  # type: ignore[arg-type]


@needs_native
def test_everything_is_given_back() -> None:
    fleet = [Worker(f"w{i}", RATES, flying=3) for i in range(3)]
    points, members = array("Q", [1, 2, 3]), frozenset(fleet)
    homes(points, fleet, [2], members, 9)
    gc.collect()
    before = [sys.getrefcount(kept) for kept in (*fleet, points, members, None)]
    for most in (9, 0, -1):
        for _ in range(100):
            homes(points, fleet, [0, 2, 9], members, most)
            homes(points, fleet, [0, 2, 9], frozenset(), most)
    after = [sys.getrefcount(kept) for kept in (*fleet, points, members, None)]
    assert all(abs(b - a) < 20 for b, a in zip(before, after, strict=True))
