"""The less loaded of two workers drawn at random."""

from collections.abc import Sequence

import xxhash

from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, nominated, predicted
from warmfleet_router.policy.least_loaded import load


class TwoChoices:
    """Draws are a function of (seed, ticket): a dry run draws what the placement will."""

    name = "two_choices"
    pulls = False

    def __init__(self, seed: int) -> None:
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        draw = xxhash.xxh64_intdigest(ask.ticket.to_bytes(8, "little"), self._seed)
        size = len(pool.workers)
        if size == 1:
            return {pool.workers[0].slot: 1}
        first = draw % size
        second = (first + 1 + (draw >> 32) % (size - 1)) % size
        return {pool.workers[first].slot: 2, pool.workers[second].slot: 1}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        drawn = nominated(candidates)
        best = min(drawn, key=lambda c: (load(c), -c.nominated))
        return Choice(best, f"less loaded of {len(drawn)} drawn")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)
