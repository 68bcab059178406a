"""Whether a server finds in its cache what its own events had told.

It does not if the router's token ids differ from the server's, if events are lost for good, or if another
cache answers at the same address. Pure.
"""

from warmfleet_router.window import HitHistory

LEARN = 0.05  # of the rate, an answer
TRUST = 0.5  # below it the events are not gone by any more
ENOUGH = 20  # answers before that is judged


class Agreement:
    """One server's, over the answers to prompts that the index or the server knew something of."""

    def __init__(self) -> None:
        self.answers = 0
        self._rate = 1.0
        self._cached = 0
        self._prompt = 0

    @property
    def rate(self) -> float | None:
        """0 to 1; None before the first answer."""
        return self._rate if self.answers else None

    def lost(self, expected: int, cached: int, block_size: int) -> bool:
        """One more answer, in tokens; whether the events must not be gone by any more.

        A block may have come or gone since the placement, and a prompt that is held whole counts one
        block less: only what is off by more is a contradiction.
        """
        if not expected and not cached:
            return False
        agrees = abs(expected - cached) <= max(2 * block_size, expected // 8)
        self.answers += 1
        self._rate += LEARN * (agrees - self._rate)
        return self.answers >= ENOUGH and self._rate < TRUST

    def told(self, now: float, hits: HitHistory, cached: int, prompt: int) -> None:
        """Its answers are all that tells of its hit rate."""
        if not self._prompt:
            hits.report(now, 0, 0)
        self._cached += cached
        self._prompt += prompt
        hits.report(now, self._cached, self._prompt)
