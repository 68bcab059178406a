"""The inner loops of a placement: C against their definition, to the last bit."""

import gc
import sys
import tracemalloc
from collections.abc import Sequence
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router import offers as chosen
from warmfleet_router import offers_python as defined
from warmfleet_router.fleet.worker import Report, Worker
from warmfleet_router.index.approximate import Approximate
from warmfleet_router.index.index import native
from warmfleet_router.offers_python import Bring
from warmfleet_router.policy.base import Candidate, PullPlan
from warmfleet_router.prices.pricing import Rates
from warmfleet_router.prices.rates import Line

needs_native = pytest.mark.skipif(not native, reason="no native index was built")

seconds = st.floats(0.0, 50.0) | st.sampled_from([0.0, 1e-9, 0.1, 1e6])
few = st.floats(0.0, 1e-2)
shares = st.floats(0.0, 1.0)


@st.composite
def workers(draw: st.DrawFn, slot: int) -> Worker:
    spread = (1.0, 1.0, 1.0)
    line = Line((draw(seconds), draw(few), draw(few)), spread)
    rates = Rates(line, Line((0.0, 0.0, 0.0), spread), line, draw(st.floats(0.0, 500.0)))
    rates.span = draw(seconds)
    worker = Worker(f"w{slot}", rates, slot=slot)
    worker.queue_until, worker.rest_s = draw(seconds), draw(seconds)
    worker.crowd_s, worker.full_at = draw(few), draw(st.sampled_from([0.0, 12.5, 40.0]))
    worker.room, worker.freeing_s = draw(st.just(inf) | st.floats(-2000.0, 2000.0)), draw(few)
    worker.report = Report(free_blocks=draw(st.integers(0, 60)))
    if draw(st.booleans()):
        worker.guess = Approximate(100)
        worker.guess.confidence = draw(shares)
    return worker


@st.composite
def questions(draw: st.DrawFn) -> tuple[Any, ...]:
    fleet = {slot: draw(workers(slot)) for slot in range(draw(st.integers(1, 8)))}
    slots = draw(st.permutations(sorted(fleet)))
    members = frozenset(fleet[slot] for slot in slots[: draw(st.integers(1, len(slots)))])
    blocks = {slot: draw(st.integers(0, 70)) for slot in slots}
    ranks = draw(st.dictionaries(st.sampled_from(slots), st.integers(1, 4)))
    answers = {slot: (draw(st.integers(0, 700)), draw(seconds), draw(st.booleans())) for slot in slots}

    def bring(worker: Worker, overlap: int, wait_s: float) -> tuple[int, float, PullPlan | None]:
        more, ready_s, pulled = answers[worker.slot]
        plan = PullPlan(worker, overlap, more, ready_s, wait_s, 1.0) if pulled else None
        return min(overlap + more, 999), ready_s, plan

    prompt, longest = 1000, draw(st.integers(1, 300))
    shared, reuse, now = draw(st.integers(0, 1000)), draw(st.just(0.0) | shares), draw(st.floats(0.0, 30.0))
    brings = draw(st.sampled_from([None, bring]))
    return fleet, members, blocks, ranks, brings, prompt, 16, longest, shared, reuse, now


markets = st.tuples(seconds, st.sampled_from([5.0, inf]), seconds, st.just(0.0) | shares, seconds, seconds)


def spelled(found: Sequence[Any]) -> list[str]:
    """By the text of each figure: 0.0 is not -0.0."""
    return [repr(figure) for figure in found]


@needs_native
@given(questions())
def test_offers_are_equal(question: tuple[Any, ...]) -> None:
    found, wanted = chosen.offers(*question), defined.offers(*question)
    assert list(found.candidates) == wanted.candidates
    for one, other in zip(found.candidates, wanted.candidates, strict=True):
        assert type(one) is Candidate
        assert spelled(one[1:9]) == spelled(other[1:9])
    assert spelled(found[1:]) == spelled(wanted[1:])


def agree_on_the_nearest(
    candidates: Sequence[Candidate], market: tuple[float, ...], near_share: float
) -> None:
    prices = defined.prices(candidates, *market)
    gaps = [price - min(prices) for price in prices]  # where the last bit of a price decides
    for near_s in (0.01, *gaps, *(nextafter(gap, inf) for gap in gaps)):
        wanted = defined.nearest(list(candidates), *market, near_share, near_s)
        assert chosen.nearest(candidates, *market, near_share, near_s) == wanted


@needs_native
@given(questions(), markets, st.just(0.0) | shares)
def test_the_nearest_offers_are_equal(
    question: tuple[Any, ...], market: tuple[float, ...], near_share: float
) -> None:
    agree_on_the_nearest(chosen.offers(*question).candidates, market, near_share)


ordinary = st.sampled_from([0.25, 0.5, 1.0]) | st.floats(0.1, 1.0)  # ties, and figures of one size
listed = st.lists(st.tuples(*[ordinary] * 6, st.sampled_from([None, "a pull"])), min_size=1, max_size=6)


@needs_native
@given(listed, st.tuples(*[ordinary] * 6), st.just(0.0) | shares)
def test_the_nearest_of_a_list_are_equal(
    figures: list[tuple[Any, ...]], market: tuple[float, ...], near_share: float
) -> None:
    made = [
        Candidate(None, 0, wait, bring, prefill, decode, weight, i, eviction, pull)  # type: ignore[arg-type]
        for i, (wait, bring, prefill, decode, weight, eviction, pull) in enumerate(figures)
    ]
    agree_on_the_nearest(made, market, near_share)


def question_of(count: int, bring: Bring | None = None) -> tuple[Any, ...]:
    line = Line((0.01, 1e-4, 0.0), (1.0, 1.0, 1.0))
    fleet = {slot: Worker(f"w{slot}", Rates(line, line, line), slot=slot) for slot in range(count)}
    blocks = dict.fromkeys(fleet, 3)
    return fleet, frozenset(fleet.values()), blocks, {0: 2}, bring, 100, 16, 8, 32, 0.5, 1.0


@needs_native
def test_candidates_are_a_sequence() -> None:
    candidates = chosen.offers(*question_of(3)).candidates
    assert len(candidates) == 3
    assert candidates[-1].worker.slot == 2
    with pytest.raises(IndexError, match="3"):
        candidates[3]
    with pytest.raises(TypeError):
        type(candidates)()


@needs_native
def test_what_goes_wrong_is_told() -> None:
    def fails(*_: Any) -> Any:
        raise OSError("no link")

    with pytest.raises(OSError, match="no link"):
        chosen.offers(*question_of(3, fails))
    with pytest.raises(TypeError):
        chosen.offers(*question_of(3, lambda *_: (1, 2.0)))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="nobody"):
        chosen.offers(*question_of(0))
    fleet, *rest = question_of(2)
    with pytest.raises(KeyError):
        chosen.offers({0: fleet[0]}, *rest)
    fleet[1].rates.prefill.coefficients = [1.0]
    with pytest.raises(ValueError, match="coefficients"):
        chosen.offers(fleet, *rest)
    with pytest.raises(TypeError):
        chosen.nearest([Candidate("w", 0, *"waitsxx")], *[1.0] * 8)  # type: ignore[arg-type]


@needs_native
def test_everything_is_given_back() -> None:
    plan = PullPlan(None, 16, 16, 0.5, 0.1, 9.0)  # type: ignore[arg-type]
    question = question_of(20, lambda *_: (48, 0.5, plan))

    def ask() -> None:
        candidates = chosen.offers(*question).candidates
        chosen.nearest(candidates, 0.0, 5.0, 1.0, 0.5, 1.0, 16.0, 0.02, 1e-3)
        list(candidates)

    def counts() -> list[int]:
        gc.collect()
        return [sys.getrefcount(kept) for kept in (*question[0].values(), plan, Candidate, defined.Offers)]

    ask()
    before = counts()
    tracemalloc.start()
    try:
        ask()
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            ask()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - traced < 1000
    finally:
        tracemalloc.stop()
    assert counts() == before
