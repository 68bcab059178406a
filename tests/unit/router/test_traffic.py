"""The adaptive externality: how many requests a queue will meet."""

import pytest
from warmfleet_router.policy.base import Ask, Candidate
from warmfleet_router.policy.cheapest import LEAST_FOLLOWING, MOST_FOLLOWING, Cheapest
from warmfleet_router.traffic import FULL, MEMORY_S, Traffic

from tests.unit.router.fleet_of import ask, fleet_of, tokens
from tests.unit.router.test_policy import WORKERS


def steady(rate: float, work_s: float, until: float = 200.0) -> Traffic:
    traffic = Traffic()
    for i in range(int(rate * until)):
        traffic.placed(work_s, i / rate)
    return traffic


def test_a_busy_period_meets_arrivals_times_wait_over_idleness() -> None:
    traffic = steady(rate=10.0, work_s=0.1)  # two workers, half busy, five requests a second each
    assert traffic.following([2.0, 2.0], 2, 200.0) == pytest.approx(5.0 * 2.0 / 0.5, rel=0.03)


def test_an_idle_worker_relieves_the_others() -> None:
    traffic = steady(rate=10.0, work_s=0.1)
    busy, relieved = (traffic.following([2.0, other], 2, 200.0) for other in (2.0, 0.0))
    assert relieved < 0.05 * busy
    assert traffic.following([0.0, 0.0], 2, 200.0) == 0.0


def test_it_fades_and_never_divides_by_nothing() -> None:
    traffic = steady(rate=10.0, work_s=5.0)
    overloaded = traffic.following([1.0], 1, 200.0)
    assert overloaded == pytest.approx(10.0 / (1.0 - FULL), rel=0.05)
    assert traffic.following([1.0], 1, 200.0 + 20 * MEMORY_S) < 1e-3
    assert Traffic().following([], 0, 0.0) == 0.0


def test_cheapest_counts_whoever_follows_between_its_bounds() -> None:
    policy = Cheapest(None, 1.25, pulls=True)
    candidate = Candidate(WORKERS[0], 0, 0.0, 0.0, 0.5, 0.0, 1.0, 0, 0.0, None)
    for following, counted in ((0.0, LEAST_FOLLOWING), (4.0, 4.0), (1000.0, MOST_FOLLOWING)):
        request = Ask((), 16, 64, 1, 1, 0, following)
        assert dict(policy.terms(request, candidate))["externality"] == pytest.approx(counted * 0.5)


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
    assert half.following([1.0], 1, 200.0) == pytest.approx(alone.following([1.0], 1, 200.0), rel=0.05)
    strange = Traffic()
    strange.elsewhere(3, 1.0)  # before any of our own: how long they are is not known
    assert strange.following([1.0], 1, 1.0) > 0.0


def test_a_report_tells_other_routers_bookings_from_our_own() -> None:
    (first, workers), (second, _) = fleet_of(1, seed=1), fleet_of(1, seed=2)
    ours = [first.route(ask(tokens((1, 64))), 0.0).booking for _ in range(3)]
    theirs = [second.route(ask(tokens((1, 64))), 0.0).booking for _ in range(2)]
    worker, ledger = first.roster.fleet.workers[workers[0].address], first.roster.ledger
    assert ledger.included(worker, [*ours, *theirs]) == 2
    ledger.end(ours[0], 1.0)
    assert ledger.included(worker, ours) == 0, "one that has ended is still our own"
