"""The worker where the request costs least, itself and the requests that come after it.

price = (wait + bring + prefill + externality + eviction + decode) / weight, with the externality lambda
times the prefill: work added here delays whoever comes next. Eviction is the work that displaced blocks will
cause. Near-ties go to the ring home, so that routers agree without talking: near is what the request itself
hardly feels, a share of its own time to first token, whatever others count for.
"""

from bisect import bisect_right
from collections.abc import Sequence

from warmfleet_router.fleet import Worker
from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms

HOME_DEPTHS = [1024 << i for i in range(12)]  # tokens; to two million
NEAR_SHARE = 0.02
NEAR_S = 1e-3
LEAST_FOLLOWING = 1.0  # somebody always comes: an idle worker is not for nothing
MOST_FOLLOWING = 16.0  # beyond, more would only trade places (LOG.md)


class Cheapest:
    """``externality`` is a constant lambda; None: as many as are expected to come before the queue is empty.

    ``bound`` is of the homes over the mean load.
    """

    name = "cheapest"

    def __init__(self, externality: float | None, bound: float, pulls: bool) -> None:
        self.pulls = pulls
        self._externality = externality
        self._bound = bound

    def nominate(self, ask: Ask, pool: Pool) -> list[tuple[Worker, int]]:
        """The ring homes at token depths 1k, 2k, 4k, ...; of a shorter prompt the home of all its blocks."""
        if not ask.keys:
            return []
        length = len(ask.keys) * ask.block_size
        depths = HOME_DEPTHS[: bisect_right(HOME_DEPTHS, length)] or [length]
        most = pool.bound(self._bound)
        homes = [
            (pool.ring.home(ask.keys[depth // ask.block_size - 1], pool.members, most), rank)
            for rank, depth in enumerate(depths, 1)
            if depth >= ask.block_size
        ]
        return [(home, rank) for home, rank in homes if home]

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        factor = 1.0 + self._lambda(ask)
        prices = [
            (wait + bring + factor * prefill + eviction + decode) / weight
            for _, _, wait, bring, prefill, decode, weight, _, eviction, _ in candidates
        ]
        least = min(prices)
        _, _, wait, bring, prefill, *_ = candidates[prices.index(least)]
        limit = least + max(NEAR_SHARE * (wait + bring + prefill), NEAR_S)
        near = [c for c, price in zip(candidates, prices, strict=True) if price <= limit]
        if len(near) == 1:
            return Choice(near[0], f"cheapest of {len(candidates)}")
        best = max(near, key=lambda c: c.nominated)
        if best.nominated:
            return Choice(best, f"ring home among {len(near)} near the cheapest of {len(candidates)}")
        rested = min(near, key=lambda c: c.worker.given_s)
        return Choice(rested, f"least worked of {len(near)} near the cheapest of {len(candidates)}")

    def _lambda(self, ask: Ask) -> float:
        if self._externality is not None:
            return self._externality
        if ask.outgrown:  # a copy relieves who comes next
            return 0.0
        return min(max(ask.following, LEAST_FOLLOWING), MOST_FOLLOWING)

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        externality = self._lambda(ask) * candidate.prefill_s
        terms = (
            ("wait", candidate.wait_s),
            ("bring", candidate.bring_s),
            ("prefill", candidate.prefill_s),
            ("externality", externality),
            ("eviction", candidate.eviction_s),
            ("decode", candidate.decode_s),
        )
        if candidate.weight == 1.0:
            return terms
        return (*terms, ("slow_start", sum(s for _, s in terms) * (1.0 / candidate.weight - 1.0)))
