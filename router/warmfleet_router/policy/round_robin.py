"""Each worker in turn."""

from collections.abc import Sequence

from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, nominated, predicted


class RoundRobin:
    name = "round_robin"
    pulls = False

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        return {pool.workers[ask.ticket % len(pool.workers)].slot: 1}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        turns = nominated(candidates)  # one a group
        return Choice(turns[ask.ticket % len(turns)], "its turn")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)
