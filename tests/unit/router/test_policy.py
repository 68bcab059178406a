"""What each policy chooses, as tables, and what cheapest must never do."""

from collections import Counter as Tally

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uhashring import HashRing
from warmfleet_router.core import RouterCore
from warmfleet_router.fleet.worker import Identity, Worker
from warmfleet_router.policy.base import Ask, Candidate, Pool, PullPlan
from warmfleet_router.policy.cheapest import LATE_S, Cheapest
from warmfleet_router.policy.ring import POINTS, Ring, _point
from warmfleet_router.prices.pricing import shared_prefill, starting_rates

from tests.unit.router.fleet_of import BLOCK, FakeWorker, ask, fleet_of, tokens

LONG = tokens((1, 4000))


def place(core: RouterCore, prompt: bytes, count: int = 1, now: float = 0.1) -> list[str]:
    return [core.route(ask(prompt), now).worker for _ in range(count)]


def load(workers: list[FakeWorker], *running: int) -> None:
    for worker, n in zip(workers, running, strict=True):
        worker.report(0.0, running=n)


def test_round_robin_takes_turns_and_a_dry_run_takes_none() -> None:
    core, _ = fleet_of(3, policy="round_robin")
    assert core.explain(ask(LONG), 0.1).chosen.worker == "w0"
    assert place(core, LONG, 4) == ["w0", "w1", "w2", "w0"]


def test_least_loaded_counts_reported_and_booked_requests() -> None:
    core, workers = fleet_of(3, policy="least_loaded")
    load(workers, 2, 0, 1)
    assert place(core, LONG) == ["w1"]
    assert sorted(place(core, LONG, 2)) == ["w1", "w2"]
    assert sorted(place(core, LONG, 3)) == ["w0", "w1", "w2"]


def test_two_choices_draws_evenly_and_takes_the_less_loaded() -> None:
    core, workers = fleet_of(4, policy="two_choices", seed=3)
    load(workers, 0, 0, 0, 1000)
    tally = Tally(place(core, LONG, 300))
    assert set(tally) == {"w0", "w1", "w2"}
    assert min(tally.values()) > 80
    other, _ = fleet_of(4, policy="two_choices", seed=4)
    assert place(other, LONG, 20) != place(fleet_of(4, policy="two_choices", seed=3)[0], LONG, 20)


def test_prefix_hash_keeps_a_prefix_together_until_the_bound() -> None:
    core, _ = fleet_of(4, policy="prefix_hash", prefix_tokens=1024)
    first = core.explain(ask(tokens((1, 1024), (5000, 100))), 0.1).chosen.worker
    same = [core.explain(ask(tokens((1, 1024), (5000 + i, 500))), 0.1).chosen.worker for i in range(8)]
    assert set(same) == {first}
    homes = {core.explain(ask(tokens((i, 2000))), 0.1).chosen.worker for i in range(40)}
    assert len(homes) == 4
    spread = Tally(place(core, LONG, 40))
    assert max(spread.values()) <= 1.25 * 41 / 4 + 1


def test_prefix_hash_agrees_between_routers() -> None:
    one, two = fleet_of(5, policy="prefix_hash", seed=1)[0], fleet_of(5, policy="prefix_hash", seed=2)[0]
    prompts = [tokens((i, 1500)) for i in range(20)]
    chosen = [[core.explain(ask(p), 0.1).chosen.worker for p in prompts] for core in (one, two)]
    assert chosen[0] == chosen[1]


def test_short_prompts_have_no_prefix_and_go_round() -> None:
    for policy in ("prefix_hash", "cheapest"):
        core, _ = fleet_of(3, policy=policy)
        assert len(set(place(core, tokens((1, 5)), 3))) == 3


def test_cheapest_goes_to_the_holder_until_its_queue_costs_more() -> None:
    core, workers = fleet_of(3, externality=8.0)
    workers[2].store(LONG, 0.0)
    placement = core.route(ask(LONG), 0.1)
    assert (placement.worker, placement.expected_tokens) == ("w2", 3999)
    workers[2].report(0.1, prefill_tokens=20_000)
    assert core.explain(ask(LONG), 0.1).chosen.worker == "w2"  # nine times the prefill is more
    workers[2].report(0.1, prefill_tokens=60_000)
    chosen = core.explain(ask(LONG), 0.1).chosen
    assert chosen.worker != "w2"
    assert (chosen.expected_tokens, chosen.available_tokens) == (0, 3999)


def test_cheapest_spreads_decoding_when_nothing_else_differs() -> None:
    core, workers = fleet_of(3)
    load(workers, 50, 0, 50)
    assert place(core, tokens((1, 300))) == ["w1"]


def test_in_a_large_fleet_everyone_gets_something() -> None:
    """More workers than the index names at once."""
    core, _ = fleet_of(40)
    assert len(set(place(core, tokens((1, 5)), 40))) == 40


def test_a_full_worker_makes_its_next_request_wait() -> None:
    core, workers = fleet_of(2)
    for worker, n in zip(workers, (64, 63), strict=True):
        worker.report(0.0, running=n)
    candidates = core.explain(ask(LONG), 0.1).candidates
    waits = {c.worker: t.seconds for c in candidates for t in c.terms if t.name == "wait"}
    assert waits.keys() == {"w0"}
    assert waits["w0"] > 0.01


def test_a_reported_queue_drains_as_time_passes() -> None:
    core, (worker,) = fleet_of(1)
    worker.report(0.0, prefill_tokens=10_000, step_age_s=0.25)
    state = core.roster.fleet.workers[worker.address]
    waits = [state.wait_s(now) for now in (0.0, 0.5, 1.0)]
    queue = state.rates.queue_s(10_000) - 0.25  # the step under way has done its part
    assert waits == pytest.approx([queue, queue - 0.5, 0.0])


def test_siblings_land_together_before_any_event() -> None:
    core, _ = fleet_of(4)
    assert len(set(place(core, LONG, 3))) == 1
    assert core.placements(1)[0].expected_tokens == 3999
    shared = [tokens((1, 3000), (9000 + 100 * i, 50)) for i in range(2)]
    assert {place(core, prompt)[0] for prompt in shared} == {core.placements(1)[0].worker}


def test_a_burst_of_siblings_is_copied_once_a_second_copy_pays() -> None:
    core, _ = fleet_of(2, externality=1.0)
    placed = place(core, LONG, 100)
    assert len(set(placed[:20])) == 1
    assert len(set(placed)) == 2


def test_prefixes_with_nothing_in_common_do_not_collapse() -> None:
    core, _ = fleet_of(4)
    tally = Tally(place(core, tokens((i * 50, 1500)))[0] for i in range(64))
    assert max(tally.values()) <= 2 * min(tally.values())


def test_bypassing_the_cache_expects_nothing() -> None:
    core, workers = fleet_of(2)
    workers[0].store(LONG, 0.0)
    assert core.route(ask(LONG, bypass_cache=True), 0.1).expected_tokens == 0


def test_the_ring_is_that_of_all_its_workers() -> None:
    """Made a worker at a time, so that a thousandth joins in the time of the first."""
    ring, workers = Ring(), [worker_named(f"w{i}") for i in range(8)]
    for worker in workers:
        ring.add(worker)
    ring.remove(workers[3])
    whole = HashRing([w.name for w in workers if w is not workers[3]], hash_fn=_point, vnodes=POINTS)
    ring.homes([], set(workers), 0.0)
    assert list(zip(ring._points, (w.name for w in ring._owners), strict=True)) == sorted(whole.get_points())


def test_ring_moves_few_keys_when_a_worker_leaves() -> None:
    ring, workers = Ring(), [worker_named(f"w{i}") for i in range(8)]
    for worker in workers:
        ring.add(worker)
    keys = [i * 0x9E37_79B9_7F4A_7C15 % 2**64 for i in range(2000)]
    before = [ring.home(key, set(workers), 1e9) for key in keys]
    ring.remove(workers[3])
    after = [ring.home(key, set(workers), 1e9) for key in keys]
    assert all(b is a or b is workers[3] for b, a in zip(before, after, strict=True))
    assert workers[3] in before
    assert workers[3] not in after


def worker_named(name: str) -> Worker:
    identity = Identity(name, "m", b"", "sim", BLOCK, 100, 1000, 8, 100)
    return Worker(f"{name}:1", starting_rates((), shared_prefill()), identity)


WORKERS = [worker_named(f"w{i}") for i in range(6)]
seconds = st.sampled_from([0.0, 0.0005, 0.5, 0.505, 1.0, 9.0])
candidate = st.builds(
    Candidate,
    st.sampled_from(WORKERS),
    st.integers(0, 1000),
    seconds,
    seconds,
    seconds,
    seconds,
    st.sampled_from([0.1, 1.0]),
    st.integers(0, 3),
    seconds,
    st.sampled_from([None, PullPlan(WORKERS[0], 0, 16, 0.1, 0.1, 1.0)]),
)


@given(st.lists(candidate, min_size=1, max_size=12), st.booleans(), st.floats(1, 16))
@settings(deadline=None)
def test_cheapest_never_pays_more_than_the_tie_rule_allows(
    candidates: list[Candidate], adaptive: bool, externality: float
) -> None:
    policy = Cheapest(None if adaptive else externality, 1.25, pulls=True)
    soonest_s = min(c.wait_s + c.bring_s + c.prefill_s for c in candidates)
    request = Ask((), BLOCK, 100, 0, pace=externality, usual_s=1.0, soonest_s=soonest_s)
    choice = policy.choose(request, candidates).candidate

    def price(c: Candidate) -> float:
        computing = c.prefill_s + externality * c.prefill_s
        late = (c.wait_s + c.bring_s + c.prefill_s - soonest_s) ** 2 / (LATE_S + 1.0) if adaptive else 0.0
        eviction_s = c.eviction_s * (1 + externality if c.pull else 1)
        return (c.wait_s + c.bring_s + computing + eviction_s + c.decode_s + late) / c.weight

    least = min(price(c) for c in candidates)
    own = max(c.wait_s + c.bring_s + c.prefill_s for c in candidates if price(c) == least)
    limit = least + max(0.02 * own, 0.001) + 1e-9
    assert price(choice) <= limit
    near_homes = [c.nominated for c in candidates if c.nominated and price(c) <= least + 0.001]
    assert choice.nominated >= max(near_homes, default=0)
    assert sum(s for _, s in policy.terms(request, choice)) == pytest.approx(price(choice))


@pytest.mark.parametrize(
    ("prefills", "ranks", "chosen"),
    [
        ((0.5, 0.5, 0.5), (0, 1, 2), 2),  # the deepest home
        ((0.5, 0.501, 0.6), (0, 1, 2), 1),  # of those near the cheapest
        ((0.5, 0.505, 0.6), (0, 1, 2), 0),  # near by price, but not for the request
        ((0.5, 0.6, 0.6), (0, 1, 2), 0),
        ((0.5, 0.5, 0.6), (0, 0, 2), 1),  # no home near: who had less to do lately
    ],
)
def test_near_ties_go_home(prefills: tuple[float, ...], ranks: tuple[int, ...], chosen: int) -> None:
    candidates = [
        Candidate(worker, 0, 0.0, 0.0, prefill, 0.0, 1.0, rank, 0.0, None)
        for worker, prefill, rank in zip(WORKERS, prefills, ranks, strict=False)
    ]
    for worker, given_s in zip(WORKERS, (3.0, 1.0, 2.0), strict=False):
        worker.given_s = given_s
    choice = Cheapest(8.0, 1.25, pulls=True).choose(Ask((), BLOCK, 100, ticket=1), candidates)
    assert choice.candidate is candidates[chosen]


def test_bounded_homes_pass_on_to_the_next_worker() -> None:
    ring = Ring()
    for worker in WORKERS:
        ring.add(worker)
    pool = Pool(WORKERS, frozenset(WORKERS), ring, 0)
    home = ring.home(12345, pool.members, pool.bound(1.25))
    assert home is not None
    home.flying = 3
    pool.in_flight = 3
    other = ring.home(12345, pool.members, pool.bound(1.25))
    home.flying = 0
    assert other is not None
    assert other is not home
