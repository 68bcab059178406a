"""The worker where the request costs least: to itself, and to the requests that come after it.

price = (wait + bring + prefill + externality + eviction + decode + lateness) / weight, in seconds

externality: lambda times the prefill, since work added here delays lambda requests that come next. For a
prefix with too few holders lambda goes by each worker's own queue: a copy elsewhere relieves the holders.
eviction: computing again what the request displaces; a pull, which might as well not be, pays for the lambda
requests that this delays, too. decode: what those who decode now add to its own decoding.
lateness: the square of what it loses by not going where it is served soonest, over LATE_S and the wait that
is usual now, because one request that waits ten seconds is worse than ten that wait one; less so where all
wait for ten. weight: below 1 for a worker that just came.

Prices that the request itself hardly feels, a small share of its time to first token, are near ties. These
go to the prompt's ring home, so that routers agree without talking.
"""

from collections.abc import Sequence
from math import inf

from warmfleet_router.offers import nearest
from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms
from warmfleet_router.prices.demand import marks

NEAR_SHARE = 0.02
NEAR_S = 1e-3
LEAST_FOLLOWING = 1.0  # somebody always comes: an idle worker is not for nothing
LATE_S = 5.0  # beyond the soonest: who is as late as this counts each further second three times
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
        # A constant is the plain price that the adaptive one has to beat.
        self.late_s = LATE_S if externality is None else inf

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        """The ring homes at token depths 1k, 2k, 4k, ...; of a shorter prompt the home of all its blocks."""
        keys, size = ask.keys, ask.block_size
        if not keys:
            return {}
        ends = marks(size, keys, len(keys) * size) or [keys[-1]]
        homes = pool.ring.homes(ends, pool.members, pool.bound(self._bound))
        ranks: dict[int, int] = {}
        for rank, home in enumerate(reversed(homes), 1):
            if home is not None:
                ranks[home.slot] = rank
        return ranks

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        near = nearest(
            candidates,
            ask.soonest_s,
            self.late_s + ask.usual_s,
            self._following(ask),
            self._outgrown(ask),
            ask.pace,
            MOST_FOLLOWING,
            NEAR_SHARE,
            NEAR_S,
        )
        if len(near) == 1:
            return Choice(near[0], f"cheapest of {len(candidates)}")
        best = max(near, key=lambda c: c.nominated)
        if best.nominated:
            return Choice(best, f"ring home among {len(near)} near the cheapest of {len(candidates)}")
        rested = min(near, key=lambda c: c.worker.given_s)
        return Choice(rested, f"least worked of {len(near)} near the cheapest of {len(candidates)}")

    def _following(self, ask: Ask) -> float:
        if self._externality is not None:
            return self._externality
        following = ask.pace * ask.usual_s
        if following <= LEAST_FOLLOWING:  # comparisons: min and max take ten times as long
            return LEAST_FOLLOWING
        return following if following < MOST_FOLLOWING else MOST_FOLLOWING

    def _outgrown(self, ask: Ask) -> float:
        return ask.outgrown if self._externality is None else 0.0

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        _, _, wait, bring, prefill, decode, weight, _, eviction, pull = candidate
        following, outgrown = self._following(ask), self._outgrown(ask)
        if outgrown:
            following += outgrown * (min(ask.pace * wait, MOST_FOLLOWING) - following)
        late = wait + bring + prefill - ask.soonest_s
        terms = (
            ("wait", wait),
            ("bring", bring),
            ("prefill", prefill),
            ("externality", following * prefill),
            ("eviction", eviction * (1.0 + following) if pull else eviction),
            ("decode", decode),
            ("lateness", late * late / (self.late_s + ask.usual_s)),
        )
        if weight == 1.0:
            return terms
        return (*terms, ("slow_start", sum(s for _, s in terms) * (1.0 / weight - 1.0)))
