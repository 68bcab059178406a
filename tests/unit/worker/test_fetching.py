"""Blocks that are brought instead of computed: what is ordered, what becomes of it, who waits for it."""

from collections import Counter

import pytest
from warmfleet_worker.fetch import Fetch
from warmfleet_worker.sequence import Ending, Reason, new_sequence
from warmfleet_worker.source import Source

from tests.unit.worker.driver import Driver
from tests.unit.worker.larder import Larder

PROMPT = list(range(40))  # ten blocks of four


def stocked(total_blocks: int = 64, prompt: list[int] = PROMPT, **limits: int) -> tuple[Driver, Larder]:
    """A driver that has computed the prompt once and lost it; the larder has it."""
    driver = Driver(total_blocks, **limits)
    driver.finish([*prompt, 7], 4)
    larder = driver.stock_up()
    driver.scheduler.fetching.pace.token_s = 1e6  # patient
    driver.scheduler.cache.clear()
    driver.log.publish(driver.scheduler.cache.take_changes())
    return driver, larder


def computed(driver: Driver, since: int) -> int:
    """Prompt tokens that went through the engine."""
    works = [work for step in driver.steps[since:] for work in step.plan.works]
    return sum(len(work.token_ids) for work in works if not work.completion_position)


def test_a_prefix_is_brought_and_not_computed() -> None:
    driver, larder = stocked()
    request = driver.submit([*PROMPT, 9], 6)
    assert request.uncached == 1
    assert driver.step() is None  # it waits
    (fetch,) = larder.begun
    assert (fetch.source, fetch.request, fetch.parent, fetch.depth) == (Source.PEER, request, request.root, 0)
    assert [piece.hash for piece in fetch.pieces] == request.hashes
    before = len(driver.steps)
    driver.run()
    driver.check_exact(request)
    assert computed(driver, before) == 1
    assert driver.started[request.key].cached_tokens == 40
    assert driver.started[request.key].brought == Counter({Source.PEER: 40})
    assert driver.scheduler.totals.brought == Counter({Source.PEER: 40})
    assert larder.lent == 0


def test_only_what_follows_the_readable_prefix_is_brought() -> None:
    driver, larder = stocked()
    driver.larder = None
    driver.scheduler.fetching.supplies = []
    driver.finish(PROMPT[:17], 1)
    driver.larder, driver.scheduler.fetching.supplies = larder, [larder]
    request = driver.finish([*PROMPT, 9], 6)
    (fetch,) = larder.begun
    assert (fetch.depth, fetch.parent) == (4, request.hashes[3])
    assert driver.started[request.key].brought == Counter({Source.PEER: 24})
    driver.check_exact(request)


def test_a_wrong_block_changes_the_text() -> None:
    driver, larder = stocked()
    token_ids, values = larder.shelf[driver.request(PROMPT).hashes[3]]
    larder.shelf[driver.request(PROMPT).hashes[3]] = (token_ids, values ^ values.dtype.type(1))
    request = driver.finish([*PROMPT, 9], 6)
    assert driver.text(request).token_ids != driver.expected(request)


@pytest.mark.parametrize("arrived", [0, 3])
def test_what_does_not_come_is_computed(arrived: int) -> None:
    driver, _ = stocked()
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    driver.bring(arrived, "broken")
    driver.run()
    driver.check_exact(request)
    assert driver.started[request.key].cached_tokens == 4 * arrived
    totals = driver.scheduler.fetching.totals
    assert (totals.arrived[Source.PEER], totals.failed[Source.PEER]) == (arrived, 10 - arrived)


def test_a_source_that_failed_rests() -> None:
    driver, larder = stocked()
    driver.submit([*PROMPT, 9], 6)
    driver.schedule()
    driver.bring(0, "broken")
    driver.run()
    driver.scheduler.cache.clear()
    driver.now -= 100.0
    driver.finish([*PROMPT, 9], 6)
    assert len(larder.begun) == 1
    driver.scheduler.cache.clear()
    driver.now += 1000.0
    driver.finish([*PROMPT, 9], 6)
    assert len(larder.begun) == 2


def test_a_slow_fetch_is_given_up_and_its_blocks_come_back_when_it_ends() -> None:
    driver, larder = stocked()
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    driver.bring(2, over=False)
    driver.now = driver.scheduler.next_timer
    before = len(driver.steps)
    while driver.step():
        pass
    driver.check_exact(request)
    assert larder.abandoned == [larder.begun[0].id]
    assert computed(driver, before) == 41 - 8
    assert driver.pool.pinned == 10  # two that came and eight that may be written to still
    driver.bring(8)
    assert driver.pool.pinned == 0
    totals = driver.scheduler.fetching.totals
    assert (totals.late[Source.PEER], totals.wasted[Source.PEER]) == (1, 8)


def test_a_long_prompt_that_began_meanwhile_makes_way_for_who_came_first() -> None:
    driver, _ = stocked(chunk_tokens=8)
    first = driver.submit([*PROMPT, 7, 8, 9], 2)
    second = driver.submit([100 + i for i in range(60)], 2)
    driver.step()
    third = driver.submit([200 + i for i in range(4)], 2)
    driver.bring()
    driver.step()
    works = driver.steps[-1].plan.works
    assert [len(work.token_ids) for work in works] == [3, 5], "what the first lacks, and then the second"
    running = driver.scheduler.batch.running
    assert [sequence.request for sequence in running] == [first, second]
    driver.run()
    for request in (first, second, third):
        driver.check_exact(request)


def test_a_fetch_ends_with_its_request() -> None:
    driver, larder = stocked()
    request = driver.submit([*PROMPT, 9], 6)
    driver.schedule()
    driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
    assert driver.schedule() is None
    assert driver.scheduler.idle
    assert larder.abandoned == [larder.begun[0].id]
    driver.bring(4, over=False)
    driver.bring(0)
    assert driver.scheduler.fetching.totals.wasted[Source.PEER] == 4
    assert driver.pool.pinned == 0
    assert driver.pool.cached == 4  # verified, and as good as any


def test_siblings_wait_for_one_fetch() -> None:
    driver, larder = stocked()
    first = driver.submit([*PROMPT, 9], 6)
    second = driver.submit([*PROMPT, 8], 6)
    driver.schedule()
    driver.scheduler.drop(first.key, Ending(Reason.CANCELLED))
    driver.schedule()
    assert larder.abandoned == []
    driver.run()
    driver.check_exact(second)
    assert len(larder.begun) == 1
    assert driver.started[second.key].brought == Counter({Source.PEER: 40})


def test_others_pass_who_waits_for_a_fetch() -> None:
    driver, _ = stocked()
    slow = driver.submit([*PROMPT, 9], 6)
    quick = driver.submit([500, 501], 3)
    while driver.step():
        pass
    driver.check_exact(quick)
    assert driver.end(slow) is None
    driver.run()
    driver.check_exact(slow)


def test_a_fetch_takes_half_of_the_pool_at_most() -> None:
    """The rest is fetched when it could be admitted: then it would take as many blocks."""
    driver, larder = stocked(24, list(range(60)))
    request = driver.finish([*range(60), 9], 4)
    assert [len(fetch.pieces) for fetch in larder.begun] == [12, 3]
    driver.check_exact(request)


def test_what_came_and_was_displaced_is_fetched_again() -> None:
    driver, larder = stocked(max_running=1)
    driver.submit([500, 501], 8)  # has the only place
    driver.step()
    request = driver.submit([*PROMPT, 9], 2)
    driver.step()
    driver.bring()
    driver.step()
    cache = driver.scheduler.cache
    cache.release(cache.allocate(cache.available) or [])
    before = len(driver.steps)
    driver.run()
    assert [len(fetch.pieces) for fetch in larder.begun] == [10, 10]
    assert computed(driver, before) == 1
    driver.check_exact(request)


def test_what_is_displaced_each_time_is_computed_in_the_end() -> None:
    driver, larder = stocked()
    request = driver.submit([*PROMPT, 9], 2)
    driver.schedule()
    cache = driver.scheduler.cache
    while driver.bring():
        cache.release(cache.allocate(cache.available) or [])
        driver.launch()
    assert 1 < len(larder.begun) < 6
    driver.run()
    driver.check_exact(request)


def test_who_found_no_room_for_a_fetch_has_it_when_it_could_be_admitted() -> None:
    """What has come for those before it takes the half that may be on its way until they are admitted: in the
    same moment as this one."""
    other = list(range(1000, 1040))
    driver = Driver(24)
    for prompt in (PROMPT, other):
        driver.finish([*prompt, 7], 4)
    driver.stock_up()
    driver.scheduler.fetching.pace.token_s = 1e6
    driver.scheduler.cache.clear()
    driver.log.publish(driver.scheduler.cache.take_changes())
    requests = [driver.submit([*prompt, 9], 2) for prompt in (PROMPT, other)]
    driver.run()
    assert [driver.started[request.key].cached_tokens for request in requests] == [40, 40]


def test_a_scored_prompt_is_computed_whole() -> None:
    driver, larder = stocked()
    request = driver.finish([*PROMPT, 9], 2, prompt_logprobs=0)
    assert larder.begun == []
    assert driver.started[request.key].cached_tokens == 0


def test_a_source_slower_than_computing_is_not_asked() -> None:
    driver, larder = stocked()
    pace = driver.scheduler.fetching.pace
    pace.token_s, pace.block_s[Source.PEER] = 1.0, 5.0
    driver.finish([*PROMPT, 9], 2)
    assert larder.begun == []
    for _ in range(100):
        pace.worth(Source.PEER, 1, 4, driver.now)
    assert pace.worth(Source.PEER, 1, 4, driver.now)  # believed to be better by now: tried again


def test_a_lookalike_is_not_brought_for_other_tokens() -> None:
    """A hash that names other tokens at the source is no hit there."""
    driver, larder = stocked()
    other = driver.request([*range(100, 140), 1])
    larder.shelf[other.hashes[0]] = larder.shelf[driver.request(PROMPT).hashes[0]]
    driver.scheduler.submit(other)
    driver.run()
    assert larder.begun == []
    driver.check_exact(other)


def test_a_fetch_names_its_chain() -> None:
    driver, larder = stocked()
    driver.finish([*PROMPT, 9], 1)
    (fetch,) = larder.begun
    assert isinstance(fetch, Fetch)
    assert b"".join(piece.token_ids for piece in fetch.pieces) == driver.request(PROMPT).prompt


def ahead(driver: Driver, prompt: list[int] = PROMPT) -> int | None:
    """Brings what nobody has asked for."""
    fetch = driver.scheduler.bring(new_sequence(driver.request(prompt, 0)), driver.now)
    driver.schedule()
    return fetch


def test_what_nobody_waits_for_comes_and_stays() -> None:
    driver, larder = stocked()
    assert ahead(driver) is not None
    assert ahead(driver) is None, "it is on its way already"
    driver.bring()
    assert driver.pool.pinned == 0
    assert ahead(driver) is None, "it is there"
    totals = driver.scheduler.fetching.totals
    assert (totals.arrived[Source.PEER], totals.wasted[Source.PEER]) == (10, 0)
    request = driver.finish([*PROMPT, 9], 6)
    assert driver.started[request.key].cached_tokens == 40
    assert len(larder.begun) == 1


def test_who_comes_meanwhile_joins_but_waits_no_longer_than_computing_takes() -> None:
    driver, larder = stocked()
    ahead(driver)
    request = driver.submit([*PROMPT, 9], 6)
    driver.scheduler.fetching.pace.token_s = 1.0
    assert driver.step() is None
    assert 0 < driver.scheduler.next_timer - driver.now <= 40
    driver.now = driver.scheduler.next_timer
    while driver.step():
        pass
    driver.check_exact(request)
    assert larder.abandoned == [larder.begun[0].id]
    driver.bring()
    assert driver.pool.pinned == 0


def test_who_joined_and_left_does_not_end_it() -> None:
    driver, larder = stocked()
    ahead(driver)
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
    driver.step()
    assert not larder.abandoned
    driver.bring()
    assert driver.scheduler.fetching.totals.arrived[Source.PEER] == 10


def test_let_go_it_ends_unless_somebody_waits() -> None:
    driver, larder = stocked()
    first = ahead(driver)
    assert first is not None
    driver.scheduler.let_go(first)
    driver.schedule()
    assert larder.abandoned == [first]
    driver.bring(0)
    second = ahead(driver)
    assert second is not None
    request = driver.submit([*PROMPT, 9], 6)
    assert driver.step() is None
    driver.scheduler.let_go(second)
    driver.schedule()
    assert larder.abandoned == [first]
    driver.run()
    driver.check_exact(request)


def test_a_run_is_not_fetched_in_part_for_want_of_room() -> None:
    """What does not come would be computed: it waits for what runs instead."""
    driver, larder = stocked(total_blocks=24)
    first = driver.submit(list(range(200, 260)), 8)  # takes sixteen blocks
    driver.step()
    second = driver.submit([*PROMPT, 9], 2)
    driver.step()
    assert larder.begun == []
    driver.run()
    assert [len(fetch.pieces) for fetch in larder.begun] == [10]
    assert driver.started[second.key].cached_tokens == 40
    driver.check_exact(first)
    driver.check_exact(second)


def test_where_not_all_fits_that_is_asked_for_one_run_comes_at_a_time() -> None:
    others = [list(range(1000 * n, 1000 * n + 40)) for n in (1, 2)]
    driver = Driver(64)
    for prompt in (PROMPT, *others):
        driver.finish([*prompt, 7], 4)
    larder = driver.stock_up()
    driver.scheduler.fetching.pace.token_s = 1e6
    driver.scheduler.cache.clear()
    driver.log.publish(driver.scheduler.cache.take_changes())
    driver.submit(list(range(5000, 5160)), 2)  # forty blocks: with thirty more too many
    requests = [driver.submit([*prompt, 9], 2) for prompt in (PROMPT, *others)]
    driver.launch()
    assert len(larder.begun) == 1
    driver.run()
    assert len(larder.begun) == 3
    assert [driver.started[request.key].cached_tokens for request in requests] == [40, 40, 40]


def test_what_nobody_waits_for_displaces_nothing_that_is_asked_for() -> None:
    driver, larder = stocked(total_blocks=24)
    driver.submit(list(range(200, 280)), 4)  # asks for twenty blocks
    assert driver.scheduler.bring(new_sequence(driver.request(PROMPT, 0)), driver.now) is None
    driver.run()
    assert ahead(driver) is not None
    assert len(larder.begun) == 1


def test_it_leaves_room_for_others() -> None:
    """A quarter of the pool at most, and nothing that runs is displaced."""
    driver, larder = stocked(total_blocks=24)
    assert ahead(driver) is not None
    assert len(larder.begun[0].pieces) == 6
    driver.bring()
