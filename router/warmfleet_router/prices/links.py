"""How long blocks take from one worker to another, or from a worker's own lower tiers to its device.

Learned from what was brought. A pair that was not measured lately is priced like all pairs together; if none
was, by a guess or by what the operator configured. So a link that was slow once is tried again.
"""

from math import inf

from warmfleet_router.prices.rates import Line

LATENCY_S = 2e-3
LINK_BYTES_PER_S = 1e9  # of a guess: an ordinary network
OWN_BYTES_PER_S = 1e10  # and host memory
# Links differ by a factor of a million: one measurement outweighs the guess. The third feature is always 0.
SPREAD = (1e-2, 1e-3, 1.0)
MEMORY_S = 60.0  # networks get well again
AT_LEAST = 4.0  # times the patience, for what did not come at all: more than a pull is worth (bring.WORTH)
MAX_PAIRS = 16_384  # remembered; the one that was measured first is forgotten


class _Link:
    __slots__ = ("at", "line")

    def __init__(self, start: tuple[float, ...] | list[float]) -> None:
        self.line = Line(start, SPREAD)
        self.at = -inf  # last measured


class Links:
    """Between the workers of one group, by name; a worker's own tiers are its link to itself."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        """``bytes_per_s``: what a link between workers is expected to carry; 0: unknown."""
        self._guesses = {
            False: (LATENCY_S, 1.0 / (bytes_per_s or LINK_BYTES_PER_S), 0.0),
            True: (LATENCY_S, 1.0 / OWN_BYTES_PER_S, 0.0),
        }
        self._all = {own: _Link(guess) for own, guess in self._guesses.items()}
        self._pairs: dict[tuple[str, str], _Link] = {}

    def seconds(self, source: str, target: str, count: float, now: float) -> tuple[float, float]:
        """Seconds of latency, and seconds of sending ``count`` bytes."""
        latency, byte, _ = self._known(source, target, now)
        return latency, count * byte

    def observe(self, source: str, target: str, count: float, seconds: float, now: float) -> None:
        """``count`` bytes received, all or what came before they were given up."""
        own, pair = source == target, (source, target)
        before = self._known(source, target, now)
        if pair not in self._pairs and len(self._pairs) >= MAX_PAIRS:
            del self._pairs[next(iter(self._pairs))]
        if not _fresh(self._pairs.get(pair), now):
            self._pairs[pair] = _Link(before)
        if not _fresh(self._all[own], now):
            self._all[own] = _Link(self._guesses[own])
        for link in (self._pairs[pair], self._all[own]):
            link.line.observe((1.0, count, 0.0), seconds)
            link.at = now

    def told(
        self,
        source: str,
        target: str,
        wanted: float,
        count: float,
        seconds: float,
        failure: str,
        now: float,
    ) -> None:
        """``count`` of ``wanted`` bytes came. Where none did, all of them would have taken longer."""
        if not count and failure in ("given_up", "lost"):
            count, seconds = wanted, AT_LEAST * seconds
        if count:
            self.observe(source, target, count, seconds, now)

    def _known(self, source: str, target: str, now: float) -> tuple[float, ...] | list[float]:
        own = source == target
        for link in (self._pairs.get((source, target)), self._all[own]):
            if link is not None and _fresh(link, now):
                return link.line.coefficients
        return self._guesses[own]


def _fresh(link: _Link | None, now: float) -> bool:
    return link is not None and now - link.at <= MEMORY_S
