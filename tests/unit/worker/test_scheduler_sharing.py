"""What the scheduler takes from the prefix cache and what others may take of it."""

import pytest
from warmfleet_worker.engine.base import Plan, Sampling

from tests.unit.worker.driver import Driver

HOT = Sampling(temperature=1.0, seed=5)


def written(driver: Driver, plan: Plan) -> set[int]:
    """The blocks that the works write into."""
    found = set()
    for work in plan.works:
        blocks = [b for run in work.runs for b in run.blocks]
        end = work.start + len(work.token_ids)
        found |= {blocks[p // driver.engine.block_size] for p in range(work.start, end)}
    return found


def readable(driver: Driver) -> set[int]:
    return {node.block for node in driver.scheduler.cache._nodes.values()}


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        (10, 10, 8),  # two full blocks of four
        (8, 8, 7),  # all of them: the last token is computed
        (8, 20, 8),
        (20, 8, 7),
        (3, 3, 0),
        (4, 4, 3),
        (4, 5, 4),
    ],
)
def test_at_most_all_but_one_token_is_cached(first: int, second: int, cached: int) -> None:
    driver = Driver()
    driver.finish(range(first), 2)
    request = driver.finish(range(second), 6)
    assert driver.started[request.key].cached_tokens == cached
    assert driver.scheduler.totals.cached_tokens == cached
    assert driver.scheduler.totals.prompt_tokens == first + second
    driver.check_exact(request)


def test_last_token_is_recomputed_in_a_private_copy() -> None:
    driver = Driver()
    driver.finish(range(8), 1)
    driver.submit(range(8), 1)
    plan = driver.schedule()
    assert plan is not None
    (work,) = plan.works
    assert (work.token_ids, work.start) == ((7,), 7)
    (copy,) = plan.copies
    assert copy.source in readable(driver)
    assert copy.target == work.runs[0].blocks[1]
    assert not written(driver, plan) & readable(driver)


def test_no_step_writes_into_a_readable_block() -> None:
    driver = Driver(total_blocks=16, chunk_tokens=6)
    for i in range(12):
        driver.submit([1, 2, 3, 4, 5, 6, 7, 8, *range(i % 3)], 7, choices=1 + i % 3)
    while plan := driver.schedule():
        assert not written(driver, plan) & readable(driver)
        driver.commit(plan)


def test_nothing_is_readable_before_its_step_has_finished() -> None:
    driver = Driver()
    request = driver.submit(range(12), 4)
    plan = driver.schedule()
    assert plan is not None
    assert readable(driver) == set()
    assert driver.scheduler.cache.take_changes() == []
    assert len(driver.log) == 0
    driver.commit(plan)
    assert len(readable(driver)) == len(driver.log) == 3
    driver.run()
    driver.check_exact(request)


def test_equal_prompts_in_one_step_are_computed_apart_and_shared_after() -> None:
    driver = Driver()
    one, two = driver.submit(range(10), 9), driver.submit(range(10), 9, sampling=HOT)
    step = driver.step()
    assert step is not None
    assert [work.start for work in step.plan.works] == [0, 0]
    first, second = driver.scheduler.batch.running
    assert first.blocks[:2] == second.blocks[:2]
    assert len(driver.log) == 2
    driver.run()
    for request in (one, two):
        driver.check_exact(request)
        assert driver.started[request.key].cached_tokens == 0


def test_completions_stay_cached() -> None:
    driver = Driver()
    first = driver.finish(range(10), 11)
    turn = [*range(10), *driver.text(first).token_ids, 1, 2, 3]
    second = driver.finish(turn, 5)
    # 20 of the first turn's 21 tokens were computed, the last one only drawn
    assert driver.started[second.key].cached_tokens == 20
    driver.check_exact(second)


def test_other_salt_shares_nothing() -> None:
    driver = Driver()
    driver.finish(range(20), 2, salt=b"tenant a")
    request = driver.finish(range(20), 2, salt=b"tenant b")
    assert driver.started[request.key].cached_tokens == 0
    driver.check_exact(request)


def test_collision_gives_no_wrong_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with equal hashes for different prompts, and children that hang below both."""
    monkeypatch.setattr(
        "tests.unit.worker.driver.chain",
        lambda root, packed, size: [bytes([i]) * 16 for i in range(len(packed) // 4 // size)],
    )
    driver = Driver()
    for prompt in ([1] * 12, [2] * 12, [2] * 4 + [1] * 8, [1] * 4 + [2] * 8, [1] * 12):
        driver.check_exact(driver.finish(prompt, 6))


def test_prompt_logprobs_bypass_the_cache() -> None:
    driver = Driver(chunk_tokens=7)
    driver.finish(range(20), 2)
    request = driver.finish(range(20), 3, prompt_logprobs=2)
    assert driver.started[request.key].cached_tokens == 0
    scores = driver.prompt_logprobs[request.key]
    assert [score.top_ids[0] for score in scores] == list(range(1, 20))
    assert driver.scheduler.cache.pool.cached == len(driver.log)
    driver.check_exact(request)
