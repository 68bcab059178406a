"""One learned line: seconds as a sum of three features times coefficients that are never negative.

Weighted least squares over what has been seen, with a weak pull towards the start; the past fades.
A measurement far above the prediction weighs little, so that outliers pass by, until several in a
row say the same: then the past is given up.

Written out for three, in local variables, since it runs for every first token; the same in loops is
in tests/unit/router/test_rates.py.
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
    of what is known stays at each measurement. ValueError where there are not three of each."""

    __slots__ = (
        "_keep",
        "_pull",
        "_pulled",
        "_side",
        "_squares",
        "_surprised",
        "_targets",
        "coefficients",
        "count",
    )

    def __init__(self, start: Sequence[float], spread: Sequence[float], keep: float = KEEP) -> None:
        a, b, c = start
        p, q, r = [1.0 / (s * s) for s in spread]
        self._keep = keep
        self.coefficients = [a, b, c]
        self.count = 0
        self._pull = (p, q, r)
        self._pulled = (p * a, q * b, r * c)
        self._squares = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # weighted sums of xx, xy, xz, yy, yz, zz
        self._targets = (0.0, 0.0, 0.0)  # of each feature times the seconds
        self._surprised = 0.0  # weight of surprises in a row
        self._side = 0

    def predict(self, features: Sequence[float]) -> float:
        a, b, c = self.coefficients
        x, y, z = features
        return a * x + b * y + c * z

    def error(self, features: Sequence[float], seconds: float) -> float:
        """How far off the prediction is, as |log of measured over predicted|."""
        return abs(log(max(seconds, TINY_S) / max(self.predict(features), TINY_S)))

    def observe(self, features: Sequence[float], seconds: float, weight: float = 1.0) -> None:
        """``weight`` below 1 for a measurement that may hold more than what the features explain."""
        predicted = max(self.predict(features), TINY_S)
        keep = self._notice(seconds / predicted, weight)
        self._add(keep, features, seconds, weight / (NOISE * max(predicted, seconds)) ** 2)
        self._descend()
        self.count += 1

    def _notice(self, ratio: float, weight: float) -> float:
        """How much of the past to keep."""
        side = (ratio > SURPRISE) - (ratio < 1.0 / SURPRISE)
        self._surprised = self._surprised + weight if side and side == self._side else weight * abs(side)
        self._side = side
        return KEEP_SURPRISED if self._surprised >= SURPRISES else self._keep

    def _add(self, keep: float, features: Sequence[float], seconds: float, weight: float) -> None:
        x, y, z = features
        wx, wy, wz = weight * x, weight * y, weight * z
        xx, xy, xz, yy, yz, zz = self._squares
        self._squares = (
            keep * xx + wx * x,
            keep * xy + wx * y,
            keep * xz + wx * z,
            keep * yy + wy * y,
            keep * yz + wy * z,
            keep * zz + wz * z,
        )
        tx, ty, tz = self._targets
        self._targets = (keep * tx + wx * seconds, keep * ty + wy * seconds, keep * tz + wz * seconds)

    def _descend(self) -> None:
        """Each coefficient in turn to where it fits best beside the others, but not below nothing."""
        xx, xy, xz, yy, yz, zz = self._squares
        (tx, ty, tz), (ux, uy, uz), (p, q, r) = self._targets, self._pulled, self._pull
        tx, ty, tz = tx + ux, ty + uy, tz + uz
        xx, yy, zz = xx + p, yy + q, zz + r
        a, b, c = self.coefficients
        for _ in range(SWEEPS):
            a = (tx - b * xy - c * xz) / xx
            a = 0.0 if a < 0.0 else a
            b = (ty - a * xy - c * yz) / yy
            b = 0.0 if b < 0.0 else b
            c = (tz - a * xz - b * yz) / zz
            c = 0.0 if c < 0.0 else c
        self.coefficients = [a, b, c]
