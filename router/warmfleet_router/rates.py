"""One learned line: seconds as a sum of features times coefficients that are never negative.

Recursive least squares with relative noise. It starts from given coefficients, forgets slowly, and
takes a surprising measurement for no more than a fixed ratio of what it predicted, so that one
outlier moves it a little and a lasting change moves it within a few measurements.
"""

from collections.abc import Sequence
from math import sqrt

NOISE = 0.2  # of the predicted value, one standard deviation
CLAMP = 3.0  # a measurement counts as at most this times the prediction, and at least its inverse
HUBER = 1.5  # standard deviations beyond which a measurement weighs less
KEEP = 0.98  # of what is known, per measurement: fifty count
TINY_S = 1e-6


class Line:
    """``spread[i]`` is how far (one standard deviation) ``start[i]`` may be from the truth."""

    __slots__ = ("_covariance", "_limits", "coefficients", "count")

    def __init__(self, start: Sequence[float], spread: Sequence[float]) -> None:
        self.coefficients = list(start)
        self.count = 0
        self._limits = [s * s for s in spread]
        size = range(len(self.coefficients))
        self._covariance = [[self._limits[i] if i == j else 0.0 for j in size] for i in size]

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * f for c, f in zip(self.coefficients, features, strict=True))

    def observe(self, features: Sequence[float], seconds: float, weight: float = 1.0) -> None:
        """``weight`` below 1 for a measurement that may hold more than what the features explain."""
        predicted = max(self.predict(features), TINY_S)
        error = min(max(seconds, predicted / CLAMP), predicted * CLAMP) - predicted
        deviation = NOISE * predicted
        variance = deviation**2 * max(abs(error) / (HUBER * deviation), 1.0) / weight
        along = [sum(c * f for c, f in zip(row, features, strict=True)) for row in self._covariance]
        total = variance + sum(a * f for a, f in zip(along, features, strict=True))
        self.coefficients = [
            max(c + a * error / total, 0.0) for c, a in zip(self.coefficients, along, strict=True)
        ]
        self._shrink(along, total)
        self.count += 1

    def _shrink(self, along: Sequence[float], total: float) -> None:
        """What was learned leaves the covariance; forgetting widens it, never beyond the start."""
        wide = [
            [(value - a * b / total) / KEEP for value, b in zip(row, along, strict=True)]
            for row, a in zip(self._covariance, along, strict=True)
        ]
        scale = [
            sqrt(min(limit / wide[i][i], 1.0)) if wide[i][i] > 0 else 0.0
            for i, limit in enumerate(self._limits)
        ]
        self._covariance = [
            [value * si * sj for value, sj in zip(row, scale, strict=True)]
            for row, si in zip(wide, scale, strict=True)
        ]
