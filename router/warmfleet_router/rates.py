"""One learned line: seconds as a sum of features times coefficients that are never negative.

Weighted least squares over what has been seen, with a weak pull towards the start; the past fades.
A measurement far above the prediction weighs little, so that outliers pass by, until several in a
row say the same: then the past is given up.
"""

from collections.abc import Sequence
from math import log

NOISE = 0.2  # of the larger of prediction and measurement, one standard deviation
KEEP = 0.98  # of what is known, per measurement: fifty count
SURPRISE = 2.0  # times the prediction, or its inverse
SURPRISES = 5.0  # in a row, by weight
KEEP_SURPRISED = 0.1
SWEEPS = 8  # of coordinate descent; each begins where the last one ended
TINY_S = 1e-6


class Line:
    """``spread[i]`` is how far (one standard deviation) ``start[i]`` may be from the truth; ``keep`` how much
    of what is known stays at each measurement."""

    __slots__ = (
        "_keep",
        "_pull",
        "_side",
        "_squares",
        "_start",
        "_surprised",
        "_targets",
        "coefficients",
        "count",
    )

    def __init__(self, start: Sequence[float], spread: Sequence[float], keep: float = KEEP) -> None:
        self._keep = keep
        self.coefficients = list(start)
        self.count = 0
        self._start = tuple(start)
        self._pull = [1.0 / (s * s) for s in spread]
        self._squares = [[0.0] * len(self._start) for _ in self._start]
        self._targets = [0.0] * len(self._start)
        self._surprised = 0.0  # weight of surprises in a row
        self._side = 0

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * f for c, f in zip(self.coefficients, features, strict=True))

    def error(self, features: Sequence[float], seconds: float) -> float:
        """How far off the prediction is, as |log of measured over predicted|."""
        return abs(log(max(seconds, TINY_S) / max(self.predict(features), TINY_S)))

    def observe(self, features: Sequence[float], seconds: float, weight: float = 1.0) -> None:
        """``weight`` below 1 for a measurement that may hold more than what the features explain."""
        predicted = max(self.predict(features), TINY_S)
        self._fade(self._notice(seconds / predicted, weight))
        weight /= (NOISE * max(predicted, seconds)) ** 2
        for i, feature in enumerate(features):
            self._targets[i] += weight * feature * seconds
            for j, other in enumerate(features):
                self._squares[i][j] += weight * feature * other
        for _ in range(SWEEPS):
            self._descend()
        self.count += 1

    def _notice(self, ratio: float, weight: float) -> float:
        """How much of the past to keep."""
        side = (ratio > SURPRISE) - (ratio < 1.0 / SURPRISE)
        self._surprised = self._surprised + weight if side and side == self._side else weight * abs(side)
        self._side = side
        return KEEP_SURPRISED if self._surprised >= SURPRISES else self._keep

    def _fade(self, keep: float) -> None:
        self._targets = [keep * value for value in self._targets]
        self._squares = [[keep * value for value in row] for row in self._squares]

    def _descend(self) -> None:
        """Each coefficient in turn to where it fits best beside the others, but not below nothing."""
        for i, (row, pull) in enumerate(zip(self._squares, self._pull, strict=True)):
            others = sum(c * s for c, s in zip(self.coefficients, row, strict=True))
            others -= self.coefficients[i] * row[i]
            best = (self._targets[i] + pull * self._start[i] - others) / (row[i] + pull)
            self.coefficients[i] = max(best, 0.0)
