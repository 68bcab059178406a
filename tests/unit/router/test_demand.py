"""Which prefixes are too hot for their holders."""

from math import exp

import pytest
from warmfleet_router.prices.demand import FIRST_S, MAX_PREFIXES, MEMORY_S, Demand

from tests.unit.router.fleet_of import ask, fleet_of, tokens

BLOCK = 512
HOT, COLD = [1, 2, 3, 4], [11, 12, 13, 14]
SHARED = 4 * BLOCK


def asked(hot: float, cold: float) -> Demand:
    """Seconds of work for two prefixes."""
    demand = Demand(BLOCK)
    demand.placed(HOT, SHARED, hot, 0.0)
    demand.placed(COLD, SHARED, cold, 0.0)
    return demand


@pytest.mark.parametrize(
    ("hot", "cold", "holders", "expected"),
    [
        (3.0, 1.0, 1, True),  # 3 on its holder, 1 on the mean of four workers
        (3.0, 1.0, 2, True),
        (3.0, 1.0, 3, False),  # 1 on each
        (1.0, 3.0, 1, False),
        (1.1, 2.9, 1, True),
        (3.0, 1.0, 0, True),  # on its way to the first
    ],
)
def test_a_prefix_outgrows_its_holders(hot: float, cold: float, holders: int, expected: bool) -> None:
    assert asked(hot, cold).outgrown(HOT, SHARED, holders, 4, 0.0, 0.0, 0.0) == expected


def test_what_shares_nothing_does_not_count() -> None:
    demand = asked(3.0, 1.0)
    demand.placed([21, 22], 0, 100.0, 0.0)
    assert demand.outgrown(HOT, SHARED, 2, 4, 0.0, 0.0, 0.0)
    assert not demand.outgrown([21, 22], 0, 1, 4, 0.0, 0.0, 0.0)


def test_demand_is_counted_at_every_marked_depth_that_is_shared() -> None:
    demand = asked(3.0, 1.0)
    branch = [1, 2, 31, 32]  # shares the mark at 1,024 tokens, not that at 2,048
    assert demand.outgrown(branch, 2 * BLOCK, 1, 4, 0.0, 0.0, 0.0)
    assert not demand.outgrown(branch, SHARED, 1, 4, 0.0, 0.0, 0.0)
    assert not demand.outgrown(HOT, BLOCK, 1, 4, 0.0, 0.0, 0.0)  # nothing marked is that short


@pytest.mark.parametrize(
    ("copy_s", "holders", "own_s", "share"),
    [
        (2.9, 1, 0.0, 1.0),
        (20.0, 1, 0.0, 3 / 20),
        (20.0, 2, 0.0, 3 / 40),
        (20.0, 1, 1.0, 4 / 20),
        (6.0, 1, 9.0, 1.0),
    ],
)
def test_what_was_asked_counts_against_the_price_of_a_copy(
    copy_s: float, holders: int, own_s: float, share: float
) -> None:
    """All of it came in the first instant: as if in FIRST_S."""
    young = 1.0 - exp(-FIRST_S / MEMORY_S)
    outgrown = asked(3.0, 1.0).outgrown(HOT, SHARED, holders, 4, copy_s, own_s, 0.0)
    assert outgrown == pytest.approx(min(share / young, 1.0))


def test_what_an_old_prefix_asks_counts_as_it_is() -> None:
    demand = asked(1e-6, 1e-6)
    later = 10 * MEMORY_S
    demand.placed(HOT, SHARED, 3.0, later)
    assert demand.outgrown(HOT, SHARED, 1, 4, 6.0, 0.0, later) == pytest.approx(0.5, rel=1e-3)


def test_demand_fades() -> None:
    demand = asked(3.0, 1.0)
    later = 3 * MEMORY_S
    for _ in range(3):
        demand.placed(COLD, SHARED, 1.0, later)
    assert not demand.outgrown(HOT, SHARED, 1, 4, 0.0, 0.0, later)
    assert demand.outgrown(COLD, SHARED, 3, 4, 0.0, 0.0, later)


def test_the_longest_unused_go_first() -> None:
    demand = asked(3.0, 1.0)
    for n in range(MAX_PREFIXES):
        demand.placed(HOT, SHARED, 0.1, 0.0)
        demand.placed([100 + 4 * n, 101 + 4 * n], 2 * BLOCK, 1e-6, 0.0)
    assert len(demand) == MAX_PREFIXES
    assert demand.outgrown(HOT, SHARED, 2, 4, 0.0, 0.0, 0.0)
    assert not demand.outgrown(COLD, SHARED, 1, 4, 0.0, 0.0, 0.0)


def test_a_hot_prefix_is_copied_once_the_wait_is_longer_than_the_copy_takes() -> None:
    """One that is not hot waits until its wait has cost the followers too."""
    prefix = (1, 4000)
    for hot, expected in ((True, "w1"), (False, "w0")):
        core, workers = fleet_of(2)
        workers[0].store(tokens(prefix), 0.0)
        workers[1].store(tokens((600_000, 4000)), 0.0)
        kept = [(600_000, 4000), prefix][hot]
        for n in range(40):  # what has been asked for of late
            core.route(ask(tokens(kept, (10_000 + 1000 * n, 1000))), 0.0)
        for worker in workers:
            worker.report(0.1)
        core.tick(20.0)
        for worker in workers:
            worker.report(20.0)
        workers[0].report(20.0, prefill_tokens=5500)  # more than the copy takes, less than twice
        assert core.explain(ask(tokens(prefix, (900_000, 100))), 20.0).chosen.worker == expected


def test_a_copy_under_way_counts_among_the_holders() -> None:
    """Its booking reaches a little less far than what the first holder has announced."""
    demand = asked(3.0, 1.0)
    assert demand.depth(SHARED + 5) == demand.depth(SHARED) == SHARED
    assert demand.depth(SHARED - 1) == 2 * BLOCK
    assert demand.depth(BLOCK + 1) == BLOCK + 1  # nothing marked is that short

    core, workers = fleet_of(3)
    prefix = (1, 4090)
    for worker in workers:
        worker.store(tokens(prefix if worker.name == "w0" else (600_000, 4000)), 0.0)
    for n in range(40):
        core.route(ask(tokens(prefix, (10_000 + 1000 * n, 1000))), 0.0)
    for worker in workers:
        worker.report(20.0)
    core.tick(20.0)
    workers[0].report(20.0, prefill_tokens=9000)
    copied = core.route(ask(tokens(prefix, (900_000, 100))), 20.0)
    again = core.route(ask(tokens(prefix, (910_000, 100))), 20.0)
    assert copied.worker != "w0"
    assert again.worker == copied.worker
    assert again.available_tokens > again.expected_tokens > 3900
