"""How long blocks take from one worker to another, learned from the pulls that were made.

A pair that was never measured is taken to be like all others together; before the first pull of all
that is a guess, or what the operator configured.
"""

from warmfleet_router.fleet import Worker
from warmfleet_router.rates import Line

LATENCY_S = 2e-3
BYTES_PER_S = 1e9  # of a guess: an ordinary network
SPREAD = (1e-2, 1e-7)
MAX_PAIRS = 16_384  # remembered; the one that was measured first is forgotten


class Links:
    """Between the workers of one group. Pairs go by the workers' names."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        """``bytes_per_s``: what a link is expected to carry; 0: unknown."""
        self._all = Line((LATENCY_S, 1.0 / (bytes_per_s or BYTES_PER_S)), SPREAD)
        self._pairs: dict[tuple[str, str], Line] = {}

    def rate(self, source: Worker, target: Worker) -> tuple[float, float]:
        """Seconds of latency, and seconds a byte."""
        line = self._pairs.get((source.name, target.name), self._all)
        latency, byte = line.coefficients
        return latency, byte

    def observe(self, source: str, target: str, count: int, seconds: float) -> None:
        """``count`` bytes received, all or what came before the pull was given up."""
        pair = source, target
        line = self._pairs.get(pair)
        if line is None:
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]
            line = self._pairs[pair] = Line(self._all.coefficients, SPREAD)
        for each in (line, self._all):
            each.observe((1.0, float(count)), seconds)
