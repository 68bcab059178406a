"""The retry budget: a share of the requests in the window, and a few a second for free."""

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.gateway.retries import FREE_PER_S, RATIO, WINDOW_S, RetryBudget


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.2)), max_size=400))
def test_never_more_than_its_share(history: list[tuple[bool, float]]) -> None:
    budget, now = RetryBudget(), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for is_request, gap in history:
        now += gap
        if is_request:
            budget.request(now)
            requests.append(now)
            continue
        recent = [sum(t > now - WINDOW_S for t in times) for times in (requests, retries)]
        allowed = recent[1] + 1 <= RATIO * recent[0] + FREE_PER_S * WINDOW_S
        assert budget.take(now) == allowed
        if allowed:
            retries.append(now)


def test_all_that_a_worker_had_under_way_goes_on_elsewhere() -> None:
    """Long answers: few requests a second, and many that end with one worker."""
    budget = RetryBudget()
    budget.under_way = 200
    assert sum(budget.take(0.0, lost=True) for _ in range(1000)) == 200


def test_what_an_overloaded_fleet_refuses_is_not_multiplied() -> None:
    """Most is under way where most is refused."""
    budget = RetryBudget()
    budget.under_way = 200
    assert sum(budget.take(0.0) for _ in range(1000)) == FREE_PER_S * WINDOW_S


def test_it_recovers_when_the_window_has_passed() -> None:
    budget = RetryBudget()
    taken = sum(budget.take(0.0) for _ in range(1000))
    assert taken == FREE_PER_S * WINDOW_S
    assert budget.take(WINDOW_S + 0.1)
