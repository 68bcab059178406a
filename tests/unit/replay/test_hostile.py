"""Never worse than simple policies on hostile traffic: a seed of what the bar plays with twenty."""

import pytest

from tests.bars import hostile
from tests.bars.hostile_workloads import BEFORE_S, CASES, case


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", CASES)
def test_cheapest_is_never_worse_than_the_best_simple_policy(name: str, seed: int) -> None:
    ratio = hostile.ratio(name, seed)
    assert ratio.mean <= hostile.ALLOWED
    assert ratio.p99 <= hostile.ALLOWED


@pytest.mark.parametrize("name", CASES)
def test_traffic_is_a_function_of_its_seed(name: str) -> None:
    first, again, other = (case(name, seed, 60).trace.requests for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert all(r.arrival_s >= BEFORE_S for r in first[-60:])


def test_a_seed_above_the_limit_is_lost() -> None:
    good, bad = hostile.Ratio(0, 0.9, 1.05), hostile.Ratio(1, 0.9, 1.06)
    assert [row.ok for row in hostile.rows("x", [good, bad])] == [True, False]
