"""The adaptive externality: how many requests a queue will meet."""

import pytest
from warmfleet_router.policy.base import Ask, Candidate
from warmfleet_router.policy.cheapest import LEAST_FOLLOWING, MOST_FOLLOWING, Cheapest
from warmfleet_router.prices.traffic import FIRST_S, FULL, MEMORY_S, Traffic, usual_wait_s

from tests.unit.router.fleet_of import ask, fleet_of, tokens
from tests.unit.router.test_policy import WORKERS


def steady(rate: float, work_s: float, until: float = 200.0) -> Traffic:
    traffic = Traffic()
    for i in range(int(rate * until)):
        traffic.placed(work_s, i / rate)
    return traffic


def test_a_busy_period_meets_arrivals_times_wait_over_idleness() -> None:
    traffic = steady(rate=10.0, work_s=0.1)  # two workers, half busy, five requests a second each
    assert traffic.pace(2, 200.0) == pytest.approx(5.0 / 0.5, rel=0.03)
    assert usual_wait_s([2.0, 2.0]) == pytest.approx(2.0)


def test_the_first_requests_tell_how_fast_they_come() -> None:
    """A young fleet is not idle: over all of the memory these would be 1.4 a second and worker, not 3.5."""
    young = steady(rate=10.0, work_s=0.001, until=10.0)
    assert 3.0 < young.pace(2, 10.0) < 5.0
    at_once = Traffic()
    for _ in range(20):
        at_once.placed(0.001, 1e5)
    assert at_once.pace(1, 1e5) == pytest.approx(20 / FIRST_S, rel=0.01)


def test_what_a_cold_fleet_computes_at_first_does_not_go_on() -> None:
    cold, warm = steady(rate=10.0, work_s=0.1, until=5.0), steady(rate=10.0, work_s=0.0, until=5.0)
    assert warm.pace(1, 5.0) < cold.pace(1, 5.0) < 1.25 * warm.pace(1, 5.0)


def test_an_idle_worker_relieves_the_others() -> None:
    assert usual_wait_s([2.0, 0.0]) < 0.05 * usual_wait_s([2.0, 2.0])
    assert usual_wait_s([0.0, 0.0]) == 0.0


def test_it_fades_and_never_divides_by_nothing() -> None:
    traffic = steady(rate=10.0, work_s=5.0)
    overloaded = traffic.pace(1, 200.0)
    assert overloaded == pytest.approx(10.0 / (1.0 - FULL), rel=0.05)
    assert traffic.pace(1, 200.0 + 20 * MEMORY_S) < 1e-3
    assert Traffic().pace(0, 0.0) == usual_wait_s([]) == 0.0


def test_cheapest_counts_whoever_follows_between_its_bounds() -> None:
    policy = Cheapest(None, 1.25, pulls=True)
    candidate = Candidate(WORKERS[0], 0, 0.0, 0.0, 0.5, 0.0, 1.0, 0, 0.0, None)
    for following, counted in ((0.0, LEAST_FOLLOWING), (4.0, 4.0), (1000.0, MOST_FOLLOWING)):
        request = Ask((), 16, 64, 0, pace=following / 2.0, usual_s=2.0)
        assert dict(policy.terms(request, candidate))["externality"] == pytest.approx(counted * 0.5)


def test_a_copy_relieves_the_holders_of_an_outgrown_prefix() -> None:
    """An idle worker that lacks it is cheaper than their queue, though it is later there."""
    policy = Cheapest(None, 1.25, pulls=True)
    holder = Candidate(WORKERS[0], 1000, 1.0, 0.0, 0.25, 0.0, 1.0, 0, 0.0, None)
    other = Candidate(WORKERS[1], 0, 0.0, 0.0, 1.3, 0.0, 1.0, 0, 0.0, None)
    for outgrown, chosen in ((0.0, holder), (1.0, other)):
        request = Ask((), 16, 64, 0, pace=4.0, usual_s=0.5, soonest_s=1.25, outgrown=outgrown)
        assert policy.choose(request, [holder, other]).candidate is chosen


def test_ten_seconds_for_one_are_more_than_a_second_for_ten() -> None:
    policy = Cheapest(None, 1.25, pulls=True)
    for wait, chosen in ((2.0, 0), (4.5, 0), (8.0, 1)):
        holder = Candidate(WORKERS[0], 1000, wait, 0.0, 0.0, 0.0, 1.0, 0, 0.0, None)
        other = Candidate(WORKERS[1], 0, 0.0, 0.0, 2.0, 0.0, 1.0, 0, 0.0, None)
        request = Ask((), 16, 64, 0, pace=4.0, usual_s=1.0, soonest_s=2.0)
        assert policy.choose(request, [holder, other]).candidate is (holder, other)[chosen]


def test_where_all_wait_nobody_is_late() -> None:
    policy = Cheapest(None, 1.25, pulls=True)
    for usual_s, stays in ((1.0, False), (8.0, True)):
        holder = Candidate(WORKERS[0], 1000, usual_s + 6.0, 0.0, 0.1, 0.0, 1.0, 0, 0.0, None)
        other = Candidate(WORKERS[1], 0, usual_s, 0.0, 0.9, 0.0, 1.0, 0, 0.0, None)
        request = Ask((), 16, 64, 0, pace=12.0 / usual_s, usual_s=usual_s, soonest_s=usual_s + 0.9)
        assert policy.choose(request, [holder, other]).candidate is (holder if stays else other)


def test_a_queue_that_many_will_meet_makes_recomputing_dearer() -> None:
    """The same request, the same queues: in busy traffic it stays with its holder."""
    prompt = tokens((1, 1600))
    chosen = {}
    for rate in (1, 40):
        core, workers = fleet_of(2)
        for i in range(20 * rate):
            core.route(ask(tokens((10_000 + 100 * i, 80))), i / rate)
        now = 20.0
        workers[0].store(prompt, now)
        workers[0].report(now, prefill_tokens=9_000)
        workers[1].report(now, prefill_tokens=5_000)
        chosen[rate] = core.explain(ask(prompt), now).chosen.worker
    assert chosen == {1: "w1", 40: "w0"}


def test_other_routers_requests_follow_too() -> None:
    """Half of the requests are placed by somebody else on the same workers: the queue meets all of them."""
    alone, half = steady(rate=10.0, work_s=0.05), Traffic()
    for i in range(1000):
        half.placed(0.05, i / 5.0)
        half.elsewhere(1, i / 5.0)
    assert half.pace(1, 200.0) == pytest.approx(alone.pace(1, 200.0), rel=0.05)
    strange = Traffic()
    strange.elsewhere(3, 1.0)  # before any of our own: how long they are is not known
    assert strange.pace(1, 1.0) > 0.0


def test_a_report_tells_other_routers_bookings_from_our_own() -> None:
    (first, workers), (second, _) = fleet_of(1, seed=1), fleet_of(1, seed=2)
    ours = [first.route(ask(tokens((1, 64))), 0.0).booking for _ in range(3)]
    theirs = [second.route(ask(tokens((1, 64))), 0.0).booking for _ in range(2)]
    worker, ledger = first.roster.fleet.workers[workers[0].address], first.roster.ledger
    assert ledger.included(worker, [*ours, *theirs]) == 2
    ledger.end(ours[0], 1.0)
    assert ledger.included(worker, ours) == 0, "one that has ended is still our own"
