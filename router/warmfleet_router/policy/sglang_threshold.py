"""The rule of SGLang's cache-aware router: affinity while the fleet is balanced, else the shortest queue.

It is that of sglang-router 0.3.2 (``--policy cache_aware``), which the live comparisons run beside: a prompt
that nobody holds enough of goes to the first of those with fewest requests in flight. So does the package
itself (``python -m tests.bars.sglang_rule``), and so does sgl-model-gateway/src/policies/cache_aware.rs in
SGLang's repository since its pull request 14650. Until then such a prompt went to the smallest tree, as
comments there still say; from 33138 on, which is later than 0.3.2, ties are broken at random. It is better
off here than there: overlap comes from the workers' events and not from a tree of past requests.
"""

from collections.abc import Sequence

from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, nominated, predicted

IMBALANCED, BALANCED = 1, 2  # ranks of the shortest queue: it is to be taken; only if nobody holds enough


class SglangThreshold:
    """Imbalanced: the longest queue is more than ``balance_abs`` requests above the shortest and more than
    ``balance_rel`` times it. ``cache_threshold`` is the share of the prompt that must match."""

    name = "sglang_threshold"
    pulls = False

    def __init__(self, balance_abs: int, balance_rel: float, cache_threshold: float) -> None:
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel
        self._cache_threshold = cache_threshold

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        queues = [worker.flying for worker in pool.workers]
        shortest, longest = min(queues), max(queues)
        imbalanced = longest - shortest > self._balance_abs and longest > self._balance_rel * shortest
        return {pool.workers[queues.index(shortest)].slot: IMBALANCED if imbalanced else BALANCED}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        named = nominated(candidates)[0]
        if named.nominated == IMBALANCED:
            return Choice(named, f"shortest queue of an imbalanced fleet: {named.worker.flying}")
        warmest = max(candidates, key=lambda c: c.overlap)
        if warmest.overlap > self._cache_threshold * ask.prompt_tokens:
            return Choice(warmest, f"longest match: {warmest.overlap} tokens")
        return Choice(named, f"shortest queue, nobody holds enough of the prompt: {named.worker.flying}")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)
