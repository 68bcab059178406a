"""The cost of Dynamo's KV router: blocks to be computed, weighted, plus blocks in use; the lowest wins.

As its documentation describes it (Dynamo 1.x, ``--router-mode kv``, temperature 0):
cost = overlap weight x potential prefill blocks + potential active blocks.
"""

from collections.abc import Sequence

from warmfleet_router.fleet.worker import Worker
from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, predicted


class DynamoCost:
    """``overlap_weight`` multiplies the prefill blocks."""

    name = "dynamo_cost"
    pulls = False

    def __init__(self, overlap_weight: float) -> None:
        self._overlap_weight = overlap_weight

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        return {}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        costs = [self._cost(ask, candidate) for candidate in candidates]
        least = min(costs)
        lowest = [c for c, cost in zip(candidates, costs, strict=True) if cost == least]
        return Choice(lowest[ask.ticket % len(lowest)], f"lowest cost: {least:.1f} blocks")

    def _cost(self, ask: Ask, candidate: Candidate) -> float:
        uncached = ask.prompt_tokens - candidate.overlap
        queued = candidate.worker.report.prefill_tokens + candidate.worker.booked.coming.tokens
        prefill = (queued + uncached) / ask.block_size
        active = _active_blocks(candidate.worker, ask.block_size)
        # What is in use already is not counted again; of the overlap that is as much as can be.
        shared = min(candidate.overlap / ask.block_size, active)
        return self._overlap_weight * prefill + active + ask.prompt_tokens / ask.block_size - shared

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)


def _active_blocks(worker: Worker, block_size: int) -> float:
    """Blocks that sequences use, each counted once, and blocks of prompts on their way.

    Prompts that wait at the worker count in the prefill blocks only: counting them here too, as Dynamo's own
    books do, would count a prompt under way three times, and did worse (16.2 s against 11.8 s).
    """
    report, booked = worker.report, worker.booked
    assert worker.identity is not None  # or it would not be a candidate
    used = worker.identity.total_blocks - report.free_blocks - report.cached_blocks
    return max(used, 0) + booked.context_tokens / block_size
