"""The rules of other routers, each held to what its documentation says, as tables."""

import pytest
from warmfleet_router.core import RouterCore
from warmfleet_router.policy.base import Ask, Candidate
from warmfleet_router.policy.dynamo_cost import DynamoCost

from tests.unit.router.fleet_of import BLOCK, FakeWorker, ask, fleet_of, tokens
from tests.unit.router.test_policy import LONG, place, worker_named

HALF = tokens((1, 2000), (9000, 2000))  # shares its first half with LONG


def sglang(running: tuple[int, ...], **routing: object) -> tuple[RouterCore, list[FakeWorker]]:
    """Three workers, of which the last holds LONG."""
    core, workers = fleet_of(3, policy="sglang_threshold", **routing)
    workers[2].store(LONG, 0.0)
    for worker, n in zip(workers, running, strict=True):
        worker.report(0.0, running=n)
    return core, workers


@pytest.mark.parametrize(
    ("running", "chosen"),
    [
        ((0, 0, 0), "w2"),  # balanced: the longest match
        ((0, 0, 64), "w2"),  # a gap of 64 is not more than 64
        ((1, 0, 65), "w1"),  # both thresholds crossed: the shortest queue
        ((130, 131, 195), "w2"),  # more than 64 above the shortest, but not more than 1.5 times it
        ((130, 131, 196), "w0"),
        ((65, 0, 0), "w1"),  # whoever it is that is long, the match does not count
    ],
)
def test_sglang_leaves_the_match_only_when_both_thresholds_are_crossed(
    running: tuple[int, ...], chosen: str
) -> None:
    core, _ = sglang(running)
    assert core.explain(ask(LONG), 0.1).chosen.worker == chosen


def test_sglang_tuned_to_a_gap_of_six() -> None:
    core, _ = sglang((1, 0, 6), balance_abs=6)
    assert core.explain(ask(LONG), 0.1).chosen.worker == "w2"
    core, _ = sglang((1, 0, 7), balance_abs=6)
    assert core.explain(ask(LONG), 0.1).chosen.worker == "w1"


@pytest.mark.parametrize(
    ("prompt", "threshold", "chosen"),
    [
        (HALF, 0.3, "w2"),
        (HALF, 0.5, "w1"),  # half is not more than half: the shortest queue
        (tokens((50_000, 4000)), 0.0, "w1"),
        (LONG, 0.99, "w2"),
    ],
)
def test_sglang_wants_more_than_a_share_of_the_prompt_to_match(
    prompt: bytes, threshold: float, chosen: str
) -> None:
    core, _ = sglang((2, 1, 1), cache_threshold=threshold)
    assert core.explain(ask(prompt), 0.1).chosen.worker == chosen


def test_sglang_sends_what_nobody_holds_to_the_first_of_the_shortest_queues() -> None:
    """However much each has had to compute before."""
    core, workers = sglang((1, 0, 0))
    workers[1].report(0.1, running=0, prompt_tokens_total=1_000_000, cached_tokens_total=0)
    prompts = [tokens((100_000 * n, 2200)) for n in range(1, 5)]
    assert [place(core, prompt)[0] for prompt in prompts] == ["w1", "w2", "w0", "w1"]


def candidate(name: str, overlap_blocks: int, prefill_tokens: int, used: int) -> Candidate:
    worker = worker_named(name)
    worker.report.prefill_tokens = prefill_tokens
    worker.report.free_blocks = 100 - used
    return Candidate(worker, overlap_blocks * BLOCK, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0.0, None)


@pytest.mark.parametrize(
    ("weight", "workers", "chosen"),
    [
        # (overlap, tokens queued, blocks in use); the prompt has 10 blocks
        (1.0, ((2, 0, 10), (5, 0, 5), (8, 0, 9)), 2),  # 8+10+10-2, 5+5+10-5, 2+9+10-8
        (1.0, ((2, 0, 10), (5, 0, 5), (8, 0, 14)), 1),
        (4.0, ((2, 0, 10), (5, 0, 5), (8, 0, 14)), 2),  # a higher weight favours reuse
        (0.0, ((8, 0, 9), (0, 0, 4), (3, 0, 5)), 0),  # no weight: 9+10-8, 4+10, 5+10-3
        (1.0, ((8, 10 * BLOCK, 8), (0, 0, 0), (0, 0, 1)), 1),  # 2+10+8+10-8, 10+10
    ],
)
def test_dynamo_takes_the_lowest_sum(
    weight: float, workers: tuple[tuple[int, int, int], ...], chosen: int
) -> None:
    candidates = [candidate(f"w{n}", *each) for n, each in enumerate(workers)]
    request = Ask((), BLOCK, 10 * BLOCK, ticket=0)
    assert DynamoCost(weight).choose(request, candidates).candidate is candidates[chosen]


def test_dynamo_counts_what_it_has_placed_before_it_is_reported() -> None:
    core, workers = fleet_of(2, policy="dynamo_cost")
    for worker in workers:
        worker.report(0.0, free_blocks=1000)
    first = place(core, tokens((1, 1600)))[0]
    assert place(core, tokens((200_000, 1600)))[0] != first
    state = core.roster.fleet.workers
    assert {w.booked.coming.tokens for w in state.values()} == {1600}
