"""The front of what is fetched is computed while the rest comes from its end, until they meet."""

from collections import Counter

import pytest
from warmfleet_worker.sequence import Ending, Reason, Request
from warmfleet_worker.source import Source

from tests.unit.worker.driver import Driver
from tests.unit.worker.larder import Larder
from tests.unit.worker.test_fetching import computed, stocked

PROMPT = list(range(40))  # ten blocks of four
STEP_S = 80  # of eight tokens, where it is said to be


def slow(chunk_tokens: int = 8, **limits: int) -> tuple[Driver, Larder]:
    """Bringing is slower than computing, and patience endless."""
    driver, larder = stocked(chunk_tokens=chunk_tokens, **limits)
    larder.patience = 1e9
    pace = driver.scheduler.fetching.pace
    pace.token_s, pace.block_s[Source.PEER] = 0.01, 1.0
    return driver, larder


def raced(driver: Driver) -> Request:
    """A request whose front is being computed."""
    request = driver.submit([*PROMPT, 9], 6)
    driver.step()
    assert driver.larder is not None
    assert driver.larder.turned == [driver.larder.begun[0].id]
    return request


def test_computing_begins_before_anything_has_come_and_ends_where_they_meet() -> None:
    driver, larder = slow()
    before = len(driver.steps)
    request = raced(driver)
    driver.bring(6, over=False)
    while driver.step():
        pass
    driver.check_exact(request)
    assert computed(driver, before) == 41 - 24
    assert driver.started[request.key].cached_tokens == 24
    assert driver.started[request.key].brought == Counter({Source.PEER: 24})
    assert driver.scheduler.totals.brought == Counter({Source.PEER: 24})
    assert larder.abandoned == [larder.begun[0].id], "the rest was computed"
    assert driver.scheduler.fetching.totals.wasted[Source.PEER] == 0
    assert driver.pool.pinned == 10 + 4, "the chain, and what the carrier may write to still"
    driver.bring(0)
    assert driver.pool.pinned == 0


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("blocks", range(1, 10))
def test_wherever_they_meet_the_text_is_right(depth: int, blocks: int) -> None:
    driver, _ = slow(depth=depth)
    request = driver.submit([*PROMPT, 9], 6)
    while driver.end(request) is None:
        driver.step()
        driver.bring(blocks, over=False)
    driver.run()
    driver.check_exact(request)
    assert driver.pool.pinned == 0


def test_the_whole_prompt_from_the_end_leaves_one_block_to_compute() -> None:
    driver, _ = slow()
    request = driver.submit(PROMPT, 6)
    driver.step()
    driver.bring(8, over=False)
    driver.run()
    driver.check_exact(request)
    assert driver.started[request.key].cached_tokens == 28, (
        "the last token is computed, in a block of its own"
    )


@pytest.mark.parametrize("back", [0, 3])
def test_what_does_not_come_is_computed_and_what_came_is_used(back: int) -> None:
    driver, _ = slow()
    request = raced(driver)
    driver.bring(back, "lost")
    driver.run()
    driver.check_exact(request)
    assert driver.started[request.key].cached_tokens == 4 * back
    assert driver.scheduler.fetching.totals.failed[Source.PEER] == 10 - back


def test_siblings_wait_for_whoever_computes_the_front() -> None:
    driver, larder = slow()
    first = raced(driver)
    second = driver.submit([*PROMPT, 8], 6)
    driver.step()
    before = len(driver.steps)
    driver.bring(5, over=False)
    driver.run()
    for request in (first, second):
        driver.check_exact(request)
    assert len(larder.begun) == 1
    assert computed(driver, before) < 41 - 20 + 2, "once"
    assert driver.started[second.key].cached_tokens == 40


def test_when_the_racer_leaves_the_rest_still_comes_for_its_sibling() -> None:
    driver, larder = slow()
    first = raced(driver)
    second = driver.submit([*PROMPT, 8], 6)
    driver.step()
    driver.bring(2, over=False)
    driver.scheduler.drop(first.key, Ending(Reason.CANCELLED))
    driver.step()
    assert larder.abandoned == []
    driver.run()
    driver.check_exact(second)
    assert len(larder.begun) == 1
    assert driver.pool.pinned == 0


def test_alone_it_takes_its_fetch_along() -> None:
    driver, larder = slow()
    request = raced(driver)
    driver.bring(2, over=False)
    driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
    driver.schedule()
    assert larder.abandoned == [larder.begun[0].id]
    assert driver.scheduler.fetching.totals.wasted[Source.PEER] == 2
    driver.bring(0)
    assert driver.pool.pinned == 0


def test_what_comes_from_the_front_too_late_is_passed_over() -> None:
    """Asked for before it was turned; computed since."""
    driver, larder = slow()
    request = raced(driver)
    driver.step()
    larder.turned.clear()
    driver.bring(3, over=False)
    larder.turned.append(larder.begun[0].id)
    driver.run()
    driver.check_exact(request)
    assert driver.pool.pinned == 0


def test_what_is_nearly_there_is_waited_for() -> None:
    driver, larder = slow()
    driver.scheduler.fetching.pace.block_s[Source.PEER] = 0.001
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    assert larder.turned == []
    assert driver.now < driver.scheduler.next_timer < driver.now + 1
    driver.now = driver.scheduler.next_timer
    driver.step()
    assert larder.turned, "it should have been there"
    driver.run()
    driver.check_exact(request)


def waiting(block_s: float | None) -> tuple[Driver, Larder, Request]:
    """A request for ten blocks, 40 s each to compute, that were expected to take so long each."""
    driver, larder = slow()
    pace = driver.scheduler.fetching.pace
    pace.token_s = STEP_S / 8
    pace.block_s = {} if block_s is None else {Source.PEER: block_s}
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    return driver, larder, request


def races(driver: Driver, larder: Larder, at: float) -> bool:
    """Whether the front is being computed at that time."""
    driver.now = at - 1  # it takes a second to look
    driver.step()
    return bool(larder.turned)


def test_a_first_piece_that_is_late_on_a_quick_link_is_not_taken_for_its_rate() -> None:
    """A tenth of it after a fifth of a step: at that rate the rest would take nearly two."""
    driver, larder, request = waiting(1.0)
    began = driver.now
    driver.now += 15
    driver.bring(1, over=False)
    assert not races(driver, larder, began + 17)
    driver.bring(3, over=False)
    assert not races(driver, larder, began + 30)
    driver.run()
    driver.check_exact(request)
    assert larder.turned == []
    assert driver.started[request.key].cached_tokens == 40


@pytest.mark.parametrize("come", [0, 1])
def test_a_link_that_has_become_slow_is_seen_to_be_within_half_a_step(come: int) -> None:
    driver, larder, request = waiting(1.0)
    began = driver.now
    assert not races(driver, larder, began + 15)
    driver.bring(come, over=False)
    assert not races(driver, larder, began + 17)
    assert races(driver, larder, began + STEP_S / 2)
    driver.run()
    driver.check_exact(request)


@pytest.mark.parametrize("come", [0, 1])
def test_of_a_link_that_was_never_used_a_whole_step_is_waited_for(come: int) -> None:
    driver, larder, request = waiting(None)
    began = driver.now
    driver.now += 15
    driver.bring(come, over=False)
    assert not races(driver, larder, began + STEP_S - 1)
    assert driver.scheduler.next_timer == began + STEP_S
    assert races(driver, larder, began + STEP_S)
    driver.run()
    driver.check_exact(request)


@pytest.mark.parametrize(("bring_s", "begins"), [(0.05, False), (0.09, True)])
def test_beside_others_it_must_be_worth_their_time(bring_s: float, begins: bool) -> None:
    """A block takes .04 s to compute: bringing it must take more than twice that."""
    driver, larder = slow(chunk_tokens=2)
    driver.submit([500, 501], 50)
    driver.step()
    driver.step()
    pace = driver.scheduler.fetching.pace
    pace.token_s, pace.block_s[Source.PEER] = 0.01, bring_s
    driver.submit([*PROMPT, 9], 6)
    driver.step()
    assert bool(larder.turned) == begins


def test_another_prompt_comes_first() -> None:
    driver, larder = slow()
    driver.submit(list(range(100, 130)), 2)
    driver.submit([*PROMPT, 9], 6)
    driver.step()
    assert larder.begun
    assert not larder.turned
