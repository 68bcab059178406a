"""Which router a prompt goes to."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.spread import BOUND, BURST, MEMORY_S, Spread

NAMES = ["a:1", "b:1", "c:1", "d:1"]
ROOTS = st.integers(0, 2**64 - 1)


@given(ROOTS)
def test_a_root_belongs_to_the_same_routers_for_every_gateway(root: int) -> None:
    """Also for one that lists them in another order, and for one that knows fewer of them."""
    order = [NAMES[i] for i in Spread(NAMES).order(root)]
    assert order == [NAMES[::-1][i] for i in Spread(NAMES[::-1]).order(root)]
    fewer = [name for name in NAMES if name != order[0]]
    assert order[1:] == [fewer[i] for i in Spread(fewer).order(root)]


def test_roots_are_spread_evenly() -> None:
    random, spread = Random(1), Spread(NAMES)
    firsts = Counter(spread.order(random.getrandbits(64))[0] for _ in range(4000))
    assert all(800 < firsts[i] < 1200 for i in range(len(NAMES)))


def test_a_root_that_everybody_shares_does_not_make_one_router_do_it_all() -> None:
    spread = Spread(NAMES)
    given_to = Counter(spread.first(7, 0.0) for _ in range(4000))
    assert given_to[spread.order(7)[0]] == max(given_to.values())
    assert max(given_to.values()) <= BOUND * (1000 + BURST)


def test_a_burst_of_siblings_and_many_roots_stay_where_they_belong() -> None:
    spread, random = Spread(NAMES), Random(1)
    assert {spread.first(7, 0.0) for _ in range(BURST)} == {spread.order(7)[0]}
    roots = [random.getrandbits(64) for _ in range(400)]
    assert sum(spread.order(root)[0] == spread.first(root, 0.0) for root in roots) > 380


def test_what_was_placed_long_ago_does_not_count() -> None:
    spread = Spread(NAMES)
    for _ in range(1000):
        spread.first(7, 0.0)
    assert spread.first(7, 20 * MEMORY_S) == spread.order(7)[0]


@given(ROOTS, st.sets(st.integers(0, 3), min_size=1))
def test_only_those_that_answer_are_asked(root: int, among: set[int]) -> None:
    spread = Spread(NAMES)
    assert {spread.first(root, 0.0, sorted(among)) for _ in range(20)} <= among
