"""The worker with the fewest requests in flight for its weight."""

from collections.abc import Sequence

from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, predicted


class LeastLoaded:
    name = "least_loaded"
    pulls = False

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        """The workers with the fewest requests. Of these another one ranks first each time."""
        fewest = min(worker.flying for worker in pool.workers)
        least = [worker for worker in pool.workers if worker.flying == fewest]
        turn = ask.ticket % len(least)
        return {worker.slot: 1 + (i == turn) for i, worker in enumerate(least)}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        best = min(candidates, key=lambda c: (load(c), -c.nominated))
        return Choice(best, f"fewest requests in flight: {best.worker.flying}")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)


def load(candidate: Candidate) -> float:
    """Requests at the worker, this one included, over its weight."""
    return (candidate.worker.flying + 1) / candidate.weight
