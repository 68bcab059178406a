"""The rule of SGLang's cache-aware router: affinity while the fleet is balanced, else the shortest queue.

As its documentation describes it (sglang-router 0.3.2, ``--policy cache_aware``). It is better off here than
there: overlap comes from the workers' events and not from a tree of past requests. The size of a tree,
which forgets nothing below 67 million characters, is what the worker has ever had to compute.
"""

from collections.abc import Sequence

from warmfleet_router.fleet.fleet import Worker
from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, nominated, predicted

SMALLEST, SHORTEST = 1, 2  # ranks of a nomination


class SglangThreshold:
    """Imbalanced: the longest queue is more than ``balance_abs`` requests above the shortest and more than
    ``balance_rel`` times it. ``cache_threshold`` is the share of the prompt that must match."""

    name = "sglang_threshold"
    pulls = False

    def __init__(self, balance_abs: int, balance_rel: float, cache_threshold: float) -> None:
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel
        self._cache_threshold = cache_threshold

    def nominate(self, ask: Ask, pool: Pool) -> list[tuple[Worker, int]]:
        queues = [worker.flying for worker in pool.workers]
        shortest, longest = min(queues), max(queues)
        if longest - shortest > self._balance_abs and longest > self._balance_rel * shortest:
            return [(pool.workers[queues.index(shortest)], SHORTEST)]
        return [(min(pool.workers, key=_tree_tokens), SMALLEST)]

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        named = nominated(candidates)[0]
        if named.nominated == SHORTEST:
            return Choice(named, f"shortest queue of an imbalanced fleet: {named.worker.flying}")
        warmest = max(candidates, key=lambda c: c.overlap)
        if warmest.overlap > self._cache_threshold * ask.prompt_tokens:
            return Choice(warmest, f"longest match: {warmest.overlap} tokens")
        return Choice(named, "smallest tree: nobody holds enough of the prompt")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)


def _tree_tokens(worker: Worker) -> int:
    """With what is on its way there: a prompt enters the tree when it is placed."""
    asked = worker.hits.total
    return asked.asked - asked.hit + worker.report.prefill_tokens + worker.booked.coming.tokens
