"""The step after the one that runs: planned on what is sure; nothing is anyone's before it has finished."""

from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.events import Stored
from warmfleet_worker.sequence import Ending, Reason

from tests.unit.worker.driver import Driver


def ahead(total_blocks: int = 64, **limits: int) -> Driver:
    return Driver(total_blocks, depth=2, **limits)


def stored(driver: Driver) -> int:
    events = [event for batch in driver.log.since(0) or [] for event in batch.events]
    return sum(len(event.hashes) for event in events if isinstance(event, Stored))


def test_a_token_is_named_by_its_place_until_it_is_drawn() -> None:
    driver = ahead()
    first = driver.submit(range(9), 4, choices=2, sampling=Sampling(1.0, seed=1))
    second, third = driver.submit(range(50, 59), 4), driver.submit(range(60, 69), 1)
    driver.launch()
    assert driver.scheduler.under_way == 2
    step = driver.step()
    assert step is not None
    assert [work.draws for work in step.plan.works] == [2, 1, 1]
    step = driver.step()  # forks are not known yet, and the third needs no token more
    assert step is not None
    (work,) = step.plan.works
    assert (work.token_ids, work.start, work.follows, work.completion_position) == ((0,), 9, 2, 1)
    driver.run()
    for request in (first, second, third):
        driver.check_exact(request)


def test_nothing_is_readable_before_its_step_has_finished() -> None:
    driver = ahead(chunk_tokens=8)
    request = driver.submit(range(16), 3)
    driver.launch()
    assert driver.scheduler.under_way == 2
    assert (stored(driver), len(driver.scheduler.cache._nodes)) == (0, 0)
    for blocks in (2, 4):
        driver.step()
        assert stored(driver) == blocks
    driver.run()
    driver.check_exact(request)


def test_as_many_steps_as_one_after_another() -> None:
    """Where no stop comes as a surprise, nothing is computed in vain."""
    counts = []
    for depth in (1, 2):
        driver = Driver(depth=depth, chunk_tokens=8)
        driver.submit(range(30), 7)
        driver.run()
        counts.append(len(driver.steps))
    assert counts[0] == counts[1] == 4 + 6


def test_blocks_of_what_stopped_stay_until_the_step_behind_has_finished() -> None:
    driver = ahead()
    ids = driver.text(driver.finish(range(5), 6)).token_ids
    pinned = driver.pool.pinned
    request = driver.submit(range(5), 6, stop_ids=frozenset([ids[2]]))
    while driver.end(request) is None:
        driver.step()
    assert driver.end(request) == Ending(Reason.STOP, stop_id=ids[2])
    assert driver.text(request).token_ids == ids[:2]
    assert not driver.scheduler.requests
    assert not driver.scheduler.idle
    assert driver.pool.pinned > pinned
    driver.run()
    assert (driver.pool.pinned, driver.scheduler.under_way) == (pinned, 0)


def test_cancelled_while_two_steps_are_under_way() -> None:
    driver = ahead(max_running=1)
    request, waiting = driver.submit(range(9), 50), driver.submit(range(9), 5)
    driver.launch()
    driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
    driver.step()
    assert driver.end(request) == Ending(Reason.CANCELLED)
    assert driver.text(request).token_ids == []
    driver.run()
    driver.check_exact(waiting)


def test_siblings_wait_for_a_prefix_that_is_under_way() -> None:
    driver = ahead()
    first = driver.submit(range(20), 5)
    driver.launch()
    sibling = driver.submit([*range(20), 99], 5)
    driver.run()
    assert driver.started[sibling.key].cached_tokens == 20
    for request in (first, sibling):
        driver.check_exact(request)


def test_nothing_is_preempted_while_a_step_is_under_way() -> None:
    driver = ahead(total_blocks=8)
    requests = [driver.submit(range(10 * n, 10 * n + 7), 14) for n in range(3)]
    while not driver.scheduler.idle:
        before, under_way = driver.scheduler.totals.preemptions, driver.scheduler.under_way
        driver.launch()
        assert not under_way or driver.scheduler.totals.preemptions == before
        driver.step()
    assert driver.scheduler.totals.preemptions
    for request in requests:
        driver.check_exact(request)


def test_a_failed_step_voids_the_one_behind_it() -> None:
    driver = ahead()
    good, other = driver.submit(range(9), 9), driver.submit(range(20, 29), 9)
    driver.launch()
    assert driver.scheduler.under_way == 2
    driver.fail()
    assert driver.scheduler.under_way == 0
    driver.launch()
    assert driver.scheduler.under_way == 1  # alone, and nothing behind it
    driver.run()
    assert driver.scheduler.totals.failed_steps == 1
    for request in (good, other):
        assert request.failures == 0
        driver.check_exact(request)
