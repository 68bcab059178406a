"""How long blocks take from one worker to another, or from a worker's own lower tiers to its device.

Learned from what was brought. A pair that was never measured is taken to be like all others together;
before the first measurement of all that is a guess, or what the operator configured.
"""

from warmfleet_router.fleet import Worker
from warmfleet_router.rates import Line

LATENCY_S = 2e-3
LINK_BYTES_PER_S = 1e9  # of a guess: an ordinary network
OWN_BYTES_PER_S = 1e10  # and host memory
SPREAD = (1e-2, 1e-6)  # links differ by a factor of a million: one measurement outweighs the guess
MAX_PAIRS = 16_384  # remembered; the one that was measured first is forgotten


class Links:
    """Between the workers of one group, by name; a worker's own tiers are its link to itself."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        """``bytes_per_s``: what a link between workers is expected to carry; 0: unknown."""
        self._between = Line((LATENCY_S, 1.0 / (bytes_per_s or LINK_BYTES_PER_S)), SPREAD)
        self._own = Line((LATENCY_S, 1.0 / OWN_BYTES_PER_S), SPREAD)
        self._pairs: dict[tuple[str, str], Line] = {}

    def seconds(self, source: Worker, target: Worker, count: float) -> tuple[float, float]:
        """Of latency and of sending ``count`` bytes."""
        others = self._own if source is target else self._between
        latency, byte = self._pairs.get((source.name, target.name), others).coefficients
        return latency, count * byte

    def observe(self, source: str, target: str, count: int, seconds: float) -> None:
        """``count`` bytes received, all or what came before they were given up."""
        pair, others = (source, target), self._own if source == target else self._between
        line = self._pairs.get(pair)
        if line is None:
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]
            line = self._pairs[pair] = Line(others.coefficients, SPREAD)
        for each in (line, others):
            each.observe((1.0, float(count)), seconds)
