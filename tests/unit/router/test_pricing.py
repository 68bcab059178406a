"""Rates are learned from what workers do."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.work import Work
from warmfleet_router.prices.pricing import Rates, shared_prefill, starting_rates

from tests.unit.router.fleet_of import fleet_of, tokens

Truth = Callable[[float, float], float]


def h200(uncached: float, context: float) -> float:
    return 4e-3 + uncached * (2.4e-5 + 3e-10 * (context + uncached / 2))


def laptop(uncached: float, context: float) -> float:
    return 2e-2 + uncached * (1.2e-3 + 5e-8 * (context + uncached / 2))


def flat(uncached: float, context: float) -> float:
    return uncached * 25e-3 / 512


def teach(rates: Rates, truth: Truth, count: int, seed: int = 1, noise: float = 0.1) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        uncached = int(16 * 2 ** chance.uniform(0, 10))
        context = int(chance.choice([0, 0, 2 ** chance.uniform(4, 14)]))
        seconds = truth(uncached, context) * chance.lognormvariate(0, noise)
        rates.observe_prefill(uncached, context, seconds, alone=True)


def alone() -> Rates:
    """Of the only worker."""
    return starting_rates((), shared_prefill())


def error(rates: Rates, truth: Truth) -> float:
    """Worst ratio over the sizes that matter."""
    pairs = [(rates.prefill_s(u, c), truth(u, c)) for u in (256, 1024, 8192) for c in (0, 4096)]
    return max(max(a / b, b / a) for a, b in pairs)


@pytest.mark.parametrize("truth", [h200, laptop, flat])
def test_prefill_is_learned_within_a_few_dozen_requests(truth: Truth) -> None:
    rates = alone()
    teach(rates, truth, 60)
    assert error(rates, truth) < 1.35
    teach(rates, truth, 200, seed=2)
    assert error(rates, truth) < 1.25


def test_of_answers_that_come_whole_the_decoding_is_told_apart() -> None:
    chance, rates = random.Random(1), starting_rates([], shared_prefill())
    for _ in range(60):
        uncached, completion = chance.randrange(100, 8000), chance.randrange(1, 600)
        took = (0.01 + uncached * 5e-5 + (completion - 1) * 0.02) * chance.uniform(0.95, 1.05)
        rates.observe_whole(uncached, 0, completion, took)
    assert rates.prefill_s(8000, 0) == pytest.approx(0.41, rel=0.25)
    assert rates.prefill_s(1000, 0) == pytest.approx(0.06, rel=0.5)


def test_outliers_hardly_move_it() -> None:
    rates = alone()
    teach(rates, h200, 200)
    for _ in range(3):
        rates.observe_prefill(1024, 0, 30.0, alone=True)
    assert error(rates, h200) < 1.5


def test_a_lasting_change_is_followed() -> None:
    rates = alone()
    teach(rates, h200, 200)
    teach(rates, lambda u, c: 10 * h200(u, c), 40, seed=3)
    assert rates.prefill_s(1024, 0) > 5 * h200(1024, 0)


def test_busy_measurements_teach_less() -> None:
    quiet, beside = alone(), alone()
    for rates in (quiet, beside):
        teach(rates, h200, 100)
    quiet.observe_prefill(1024, 0, 0.05, alone=True)
    beside.observe_prefill(1024, 0, 0.05, alone=False)
    assert h200(1024, 0) < beside.prefill_s(1024, 0) < quiet.prefill_s(1024, 0)


def kindred(count: int) -> list[Rates]:
    """Of workers of one kind."""
    shared = shared_prefill()
    return [starting_rates((), shared) for _ in range(count)]


def test_a_newcomer_starts_from_what_its_kind_has_learned() -> None:
    shared = shared_prefill()
    teach(starting_rates((), shared), h200, 100)
    assert error(starting_rates((), shared), h200) < 1.35


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_equal_workers_cost_the_same(seed: int) -> None:
    """Whatever each happens to have measured: a price multiplies the difference."""
    fleet = kindred(6)
    for n, rates in enumerate(fleet):
        teach(rates, h200, 60, seed + n, noise=0.3)
    assert len({rates.prefill_s(8192, 0) for rates in fleet}) == 1
    assert error(fleet[0], h200) < 1.5


@pytest.mark.parametrize("slower", [0.2, 2.0, 5.0])
def test_a_worker_of_another_speed_is_known_within_a_few_requests(slower: float) -> None:
    *others, odd = kindred(6)
    for n in range(10):
        for m, rates in enumerate(others):
            teach(rates, h200, 2, seed=100 * n + m)
        teach(odd, lambda u, c: slower * h200(u, c), 1, seed=n)
    assert max(error(rates, h200) for rates in others) < 1.5
    assert error(odd, lambda u, c: slower * h200(u, c)) < 1.5


def test_decode_steps_are_learned_from_reports_of_pure_decoding() -> None:
    core, (worker,) = fleet_of(1)
    chance = random.Random(1)
    work, total = Work(), 0.0
    for n in range(300):
        batch = chance.randrange(1, 64)
        work = work.plus(Work(0, 0, 0, 10, 10 * batch, 10 * 500 * batch))
        total += 10 * (6e-3 + 5e-5 * batch)
        if n % 4:  # mostly a prompt beside them: it would be taken for the price of decoding
            work, total = work.plus(Work(1, 1000, 500_000)), total + 1.0
        worker.report(1.0 + 0.1 * n, step_seconds_total=total, work=pb.Work(**work._asdict()))
    rates = core.roster.fleet.workers[worker.address].rates
    for batch in (1, 32, 64):
        assert rates.step_s(batch, 500 * batch) == pytest.approx(6e-3 + 5e-5 * batch, rel=0.2)


def test_no_rate_is_ever_negative() -> None:
    rates = alone()
    for batch in range(1, 64):
        rates.observe_step(batch, 0, 0.1 - 1e-3 * batch)
    assert min(rates.step.coefficients) >= 0
    assert rates.step_s(1, 0) > 0


def test_prediction_error_is_kept() -> None:
    rates = alone()
    assert rates.ttft_error is None
    for _ in range(100):
        rates.observe_ttft(0.5, 1.0)
    assert rates.ttft_error == pytest.approx(0.5)


def test_a_worker_not_measured_yet_is_no_bargain() -> None:
    """Its guessed rates would draw a conversation away from the slow worker that holds it."""
    core, workers = fleet_of(2)
    turn = tokens((1, 160))
    placed = core.route(rpb.RouteRequest(model="m", gateway_id="g", token_ids=turn), 20.0)
    holder = next(w for w in workers if w.name == placed.worker)
    holder.store(turn, 21.0)
    core.progress(rpb.ProgressRequest(booking=placed.booking, prefill_s=2.0, ttft_s=2.0), 21.0)
    core.finish(rpb.FinishRequest(booking=placed.booking, outcome=rpb.FinishRequest.OK), 22.0)
    longer = turn + tokens((900, 40))
    followed = core.route(rpb.RouteRequest(model="m", gateway_id="g", token_ids=longer), 23.0)
    assert followed.worker == placed.worker
    assert followed.expected_tokens == 160


def test_what_is_booked_costs_what_has_been_learned_since() -> None:
    core, workers = fleet_of(2)
    request = rpb.RouteRequest(model="m", gateway_id="g", token_ids=tokens((1, 1600)), max_tokens=1)
    placed = {core.route(request, 20.0).worker: None for request.exclude[:] in ([], ["w1"], ["w2"])}
    first = core.route(rpb.RouteRequest(model="m", gateway_id="g", token_ids=tokens((9, 400))), 20.0)
    states = core.roster.fleet.workers.values()
    guessed = {w.name: w.wait_s(20.0) for w in states}
    core.progress(rpb.ProgressRequest(booking=first.booking, prefill_s=4.0, ttft_s=4.0), 20.5)
    assert len(placed) == len(workers)
    assert all(w.wait_s(20.5) > 5 * guessed[w.name] for w in states)


@pytest.mark.parametrize(("count", "learned"), [(16, 0.02), (400, 0.8)])
def test_a_few_tokens_cost_their_share_of_the_steps_that_computed_others_too(
    count: int, learned: float
) -> None:
    """Else the rest of each sibling in a burst was priced like the step that computed all of them."""
    core, _ = fleet_of(1)
    for _ in range(20):
        request = rpb.RouteRequest(model="m", gateway_id="g", token_ids=tokens((1, count)))
        placed = core.route(request, 20.0)
        told = rpb.ProgressRequest(booking=placed.booking, prefill_s=0.8, work_s=0.02)
        core.progress(told, 20.0)
        core.finish(rpb.FinishRequest(booking=placed.booking, outcome=rpb.FinishRequest.OK), 20.0)
    (worker,) = core.roster.fleet.workers.values()
    assert worker.rates.prefill_s(count, 0) == pytest.approx(learned, rel=0.2)


def test_what_is_lent_is_corrected_as_the_lender_learns() -> None:
    """A first request that warmed an engine up must not price the others away for good."""
    core, _ = fleet_of(2)
    alone = ["w1"]
    for seconds in (5.0, *[0.05] * 20):
        request = rpb.RouteRequest(model="m", gateway_id="g", token_ids=tokens((1, 500)), exclude=alone)
        placed = core.route(request, 20.0)
        core.progress(rpb.ProgressRequest(booking=placed.booking, prefill_s=seconds), 20.0)
        core.finish(rpb.FinishRequest(booking=placed.booking, outcome=rpb.FinishRequest.OK), 20.0)
    lender, borrower = core.workers(20.0)
    assert borrower.prefill_s_per_1k_tokens == pytest.approx(lender.prefill_s_per_1k_tokens, rel=0.1)
    assert lender.prefill_s_per_1k_tokens < 0.5


def test_the_length_of_completions_is_known_at_once_and_then_follows_slowly() -> None:
    rates = alone()
    rates.observe_completion(10.0)
    assert rates.completion == 10.0
    for _ in range(99):
        rates.observe_completion(10.0)
    rates.observe_completion(1010.0)
    assert rates.completion == pytest.approx(60.0)
