"""The worker where the request costs least: to itself, and to the requests that come after it.

price = (wait + bring + prefill + externality + eviction + decode + lateness) / weight, in seconds

wait: until the work before it is done. bring: for what it pulls or loads, as far as that takes longer than
the wait. prefill: to compute the tokens that are not there.
externality: lambda times the prefill. Work that is added to a queue delays every request that comes before
the queue is empty; lambda says how many these are. For a prefix that too few workers hold, it is taken from
each worker's own queue instead of the usual one, since a copy elsewhere relieves the holders.
eviction: to compute again what the request displaces, if it is missed. With a pull, which is not needed to
serve the request, it counts lambda times more: what has to be computed again delays others, too.
decode: what the sequences that decode there add to the request's own decoding.
lateness: late^2 / (LATE_S + usual wait), where late is what the request loses by not going where its first
token comes soonest. The square, because one request that waits ten seconds is worse than ten that wait one;
less so where waits are long for everybody.
weight: below 1 for a worker that has just come, so that it is given little at first.

Prices that differ by a small share of the request's time to first token are near ties. Of these the prompt's
home on the hash ring wins, so that several routers agree without talking.
"""

from collections.abc import Sequence
from math import inf

from warmfleet_router.offers import nearest
from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms
from warmfleet_router.prices.demand import marks

NEAR_SHARE = 0.02
NEAR_S = 1e-3
# Bounds of lambda. Somebody always comes, so an idle worker's time has a price; and beyond the upper bound
# more requests would only trade places (LOG.md).
LEAST_FOLLOWING = 1.0
MOST_FOLLOWING = 16.0
LATE_S = 5.0  # a request that is so late counts each further second three times, where nobody else waits


class Cheapest:
    """``externality`` is a constant lambda; None: as many as are expected to come before the queue is empty.

    A ring home is passed over if its load is above ``bound`` times the mean.
    """

    name = "cheapest"

    def __init__(self, externality: float | None, bound: float, pulls: bool) -> None:
        self.pulls = pulls
        self._externality = externality
        self._bound = bound
        # A constant lambda makes the plain price, without lateness, that the adaptive one has to beat.
        self.late_s = LATE_S if externality is None else inf

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        """The ring homes of the prompt's prefixes of 1k, 2k, 4k, ... tokens, the longest ranked highest; of a
        shorter prompt that of all its blocks."""
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
