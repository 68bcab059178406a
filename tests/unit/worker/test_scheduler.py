"""The scheduler's rules, each on a small pool with the engine that notices wrong KV."""

import pytest
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_worker.engine.base import Copy, Sampling
from warmfleet_worker.sequence import Ending, Reason

from tests.unit.worker.driver import Driver

HOT = Sampling(temperature=1.0, seed=5)


# ---- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [128, 129, 4000])
def test_prompt_beyond_the_pool_is_refused(length: int) -> None:
    driver = Driver(total_blocks=32)
    with pytest.raises(BadRequest, match="128"):
        driver.submit(range(length))
    assert driver.scheduler.idle


def test_prompt_beyond_the_context_is_refused() -> None:
    driver = Driver(max_context=50)
    driver.finish(range(49), 1)
    with pytest.raises(BadRequest, match="50"):
        driver.submit(range(50))


def test_choices_that_never_fit_are_refused() -> None:
    driver = Driver(total_blocks=6)
    with pytest.raises(BadRequest, match="9: this worker runs at most 8"):
        driver.submit(range(4), choices=9)
    with pytest.raises(BadRequest, match="8 blocks: the pool holds 6"):
        driver.submit(range(4), choices=7)


def test_largest_prompt_runs_also_when_it_is_cached() -> None:
    driver = Driver(total_blocks=8)
    for _ in range(2):
        driver.check_exact(driver.finish(range(31), 1))
    for _ in range(2):
        driver.check_exact(driver.finish(range(28), 4))
    driver.check_exact(driver.finish(range(24), 3, choices=2))
    driver.check_exact(driver.finish(range(24), 3, choices=2))


def test_max_tokens_is_clipped_to_the_context() -> None:
    driver = Driver(total_blocks=8)
    request = driver.finish(range(20), 1_000_000)
    assert len(driver.text(request).token_ids) == 12
    driver.check_exact(request)


def test_admission_takes_the_prompt_one_token_more_and_a_block_a_choice() -> None:
    driver = Driver(chunk_tokens=4)
    driver.submit(range(16), 1, choices=3)  # 17 tokens: five blocks, though the first chunk fills one
    driver.step()
    (sequence,) = driver.scheduler.batch.running
    assert (len(sequence.blocks), len(sequence.spares)) == (5, 2)
    assert driver.pool.pinned == 7
    driver.run()


def test_admission_leaves_a_block_for_each_that_runs() -> None:
    driver = Driver(total_blocks=6)
    driver.submit(range(8), 8)  # three blocks now, four at its end
    driver.submit(range(20, 28), 8)  # three blocks: none would be left
    driver.step()
    assert len(driver.scheduler.batch.running) == 1
    driver.run()
    assert driver.scheduler.totals.preemptions == 0


def test_queue_has_a_bound() -> None:
    driver = Driver(max_waiting=2)
    driver.submit([1], 1)
    driver.submit([2], 1)
    with pytest.raises(Rejected, match="full"):
        driver.submit([3], 1)
    driver.run()
    driver.finish([3], 1)


def test_draining_admits_nothing_and_finishes_the_rest() -> None:
    driver = Driver()
    request = driver.submit(range(5), 4)
    driver.scheduler.draining = True
    with pytest.raises(Rejected, match="draining"):
        driver.submit([1])
    driver.run()
    driver.check_exact(request)


def test_no_more_than_max_running() -> None:
    driver = Driver(max_running=3)
    requests = [driver.submit([i], 5, choices=2) for i in range(4)]
    while driver.step():
        assert sum(len(s.choices) for s in driver.scheduler.batch.running) <= 3
    for request in requests:
        driver.check_exact(request)


def test_a_step_computes_no_more_prompt_than_a_chunk() -> None:
    driver = Driver(chunk_tokens=10, total_blocks=200)
    requests = [driver.submit(range(i, i + 33), 4) for i in range(5)]
    while step := driver.step():
        assert sum(len(w.token_ids) for w in step.plan.works if len(w.token_ids) > 1) <= 10
    for request in requests:
        driver.check_exact(request)


# ---- preemption ------------------------------------------------------------------------------------


def test_newest_is_preempted_and_nothing_is_lost() -> None:
    driver = Driver(total_blocks=10)
    old, new = driver.submit(range(10), 25, sampling=HOT), driver.submit(range(9), 25, sampling=HOT)
    driver.run()
    assert driver.scheduler.totals.preemptions
    for request in (old, new):
        driver.check_exact(request)
    ended = [key for key, text in driver.texts.items() if text.ending]
    assert len(ended) == 2


def test_what_is_found_after_a_preemption_is_not_a_hit() -> None:
    driver = Driver(total_blocks=10)
    for start in (0, 100):
        driver.submit(range(start, start + 10), 25)
    driver.run()
    assert driver.scheduler.totals.preemptions
    assert driver.scheduler.totals.cached_tokens == 0
    assert driver.scheduler.totals.prompt_tokens == 20


def test_preempted_goes_first_again() -> None:
    driver = Driver(total_blocks=10, max_running=2)
    driver.submit(range(10), 25)
    new = driver.submit(range(9), 25)
    last = driver.submit(range(50, 55), 1)
    while not driver.scheduler.totals.preemptions:
        driver.step()
    assert [sequence.request for sequence in driver.scheduler.batch.waiting] == [new, last]
    driver.run()
    driver.check_exact(last)


# ---- choices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [7, 8, 9])
def test_choices_fork_after_one_prefill(length: int) -> None:
    driver = Driver()
    request = driver.submit(range(length), 9, choices=3, sampling=HOT)
    step = driver.step()
    assert step is not None
    (work,) = step.plan.works
    assert work.choices == (0, 1, 2)
    assert len(step.result.drawn[0].token_ids) == 3
    first, *others = driver.scheduler.batch.running
    for other in others:
        full = length // 4
        assert other.blocks[:full] == first.blocks[:full]
        assert not set(other.blocks[full:]) & set(first.blocks[full:])
    plan = driver.schedule()
    assert plan is not None
    tail = [Copy(first.blocks[length // 4], other.blocks[-1]) for other in others]
    assert list(plan.copies) == (tail if length % 4 else [])
    driver.commit(plan)
    driver.run()
    driver.check_exact(request)
    assert len({tuple(driver.text(request, c).token_ids) for c in range(3)}) == 3
    assert driver.scheduler.totals.prompt_tokens == length


def test_tail_is_copied_though_the_first_choice_has_ended() -> None:
    """Its blocks are free before the copies are made: their source is held."""
    driver = Driver(total_blocks=6)
    probe = driver.request(range(6), 4, choices=3, sampling=HOT)
    probe.max_tokens = 4
    stop = driver.expected(probe, 0)[0]
    request = driver.submit(range(6), 4, choices=3, sampling=HOT, stop_ids=frozenset([stop]))
    driver.submit(range(50, 55), 4)  # takes any block that is free
    driver.run()
    assert driver.text(request, 0).ending == Ending(Reason.STOP, stop_id=stop)
    for choice in (1, 2):
        assert driver.text(request, choice).token_ids == driver.expected(request, choice)


# ---- ends ------------------------------------------------------------------------------------------


def test_stop_id_ends_a_choice_and_is_named_only() -> None:
    driver = Driver()
    probe = driver.finish(range(5), 6)
    ids = driver.text(probe).token_ids
    request = driver.finish(range(5), 6, stop_ids=frozenset([ids[3]]), sampling=Sampling(logprobs=0))
    text = driver.text(request)
    assert text.token_ids == ids[:3]
    assert len(text.logprobs) == 3
    assert text.ending == Ending(Reason.STOP, stop_id=ids[3])


def test_no_tokens_asked_for() -> None:
    driver = Driver()
    request = driver.finish(range(9), 0, prompt_logprobs=1)
    assert driver.text(request).ending == Ending(Reason.LENGTH)
    assert driver.text(request).token_ids == []
    assert len(driver.prompt_logprobs[request.key]) == 8


def test_cancelled_within_one_step() -> None:
    driver = Driver(max_running=2)
    running, waiting = driver.submit(range(9), 50, choices=2), driver.submit(range(9), 50)
    driver.step()
    plan = driver.schedule()
    assert plan is not None
    for request in (running, waiting):
        driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
    driver.commit(plan)
    for text in (driver.text(running, 0), driver.text(running, 1), driver.text(waiting)):
        assert text.ending == Ending(Reason.CANCELLED)
    assert len(driver.text(running).token_ids) == 1
    assert driver.schedule() is None
    assert driver.scheduler.idle
    assert driver.pool.pinned == 0


def test_deadline_drops_work_before_a_step() -> None:
    driver = Driver(max_running=1)
    running = driver.submit(range(9), 50, deadline=6.5)
    waiting = driver.submit(range(9), 50, deadline=4.5)
    later = driver.submit(range(9), 3, deadline=1000.0)
    driver.run()
    for request in (running, waiting):
        ending = driver.end(request)
        assert ending is not None
        assert ending.reason == Reason.DEADLINE
    assert driver.text(waiting).token_ids == []
    # a step takes two seconds here: those that end at 2, 4 and 6 are in time, the one at 8 delivers nothing
    assert len(driver.text(running).token_ids) == 3
    driver.check_exact(later)


def test_engine_that_fails_takes_only_the_request_it_was_alone_with() -> None:
    driver = Driver()
    good, poison, other = driver.submit(range(9), 9), driver.submit(range(20, 29), 9), driver.submit([1], 9)
    driver.step()
    for _ in range(100):
        plan = driver.schedule()
        if plan is None:
            break
        if any(work.runs[0].blocks and 20 in work.token_ids for work in plan.works) or (
            poison.live and any(work.runs == poison.live[0].runs for work in plan.works)
        ):
            driver.fail()
        else:
            driver.commit(plan)
    assert driver.end(poison) == Ending(Reason.FAILED, "broken")
    driver.check_exact(good)
    driver.check_exact(other)


def test_engine_that_always_fails_ends_everything() -> None:
    driver = Driver()
    requests = [driver.submit(range(i, i + 9), 9) for i in range(3)]
    while driver.schedule():
        driver.fail()
    for request in requests:
        assert driver.end(request) == Ending(Reason.FAILED, "broken")
    assert driver.pool.free == driver.pool.total


def test_prompt_is_scored_once_however_often_it_is_computed() -> None:
    driver = Driver(chunk_tokens=8)
    request = driver.submit(range(30), 3, prompt_logprobs=1)
    driver.step()
    driver.step()
    assert driver.schedule()
    driver.fail()
    driver.run()
    assert len(driver.prompt_logprobs[request.key]) == 29


def test_load_counts_what_siblings_share_once() -> None:
    """Four wait behind the cold prefill of their prefix: they will find it."""
    driver = Driver(chunk_tokens=8, max_running=1)
    siblings = [driver.submit([*range(40), 100 + i], 3) for i in range(5)]
    assert driver.scheduler.load().prefill_tokens == 41 + 4 * 1
    for sibling in siblings:
        driver.scheduler.drop(sibling.key, Ending(Reason.CANCELLED))
    driver.run()
    driver.submit([*range(40), 7], 3)
    assert driver.scheduler.load().prefill_tokens == 41  # nobody is making it any more


def test_load_counts_what_is_to_be_computed() -> None:
    driver = Driver(chunk_tokens=8, max_running=1)
    driver.finish(range(12), 1)
    driver.submit(range(50, 70), 3)
    driver.submit([*range(12), 1, 2, 3], 3)
    load = driver.scheduler.load()
    assert (load.running, load.waiting, load.prefill_tokens) == (0, 2, 23)
    driver.step()
    load = driver.scheduler.load()
    assert (load.running, load.waiting, load.prefill_tokens, load.context_tokens) == (1, 1, 15, 8)
    driver.run()
    load = driver.scheduler.load()
    assert (load.running, load.waiting, load.prefill_tokens, load.context_tokens) == (0, 0, 0, 0)


def test_prompts_that_share_a_step_share_its_time() -> None:
    """Siblings' short rests cost next to nothing each, though each of them takes a whole step."""
    driver = Driver(chunk_tokens=32)
    long = driver.submit(range(50), 2)
    short = [driver.submit(range(100 * n, 100 * n + 2), 2) for n in (1, 2, 3)]
    driver.schedule_and_commit_in(8.0)  # 32 of the first
    driver.schedule_and_commit_in(24.0)  # 18 and three of 2
    started = [driver.started[request.key] for request in (long, *short)]
    assert [each.prefill_s for each in started] == [32.0, 24.0, 24.0, 24.0]
    assert [each.work_s for each in started] == [8.0 + 18.0, 2.0, 2.0, 2.0]
