"""The line as it is written out, against the same in loops."""

from collections.abc import Iterable

from hypothesis import example, given, settings
from hypothesis import strategies as st
from warmfleet_router.prices.rates import KEEP_SURPRISED, NOISE, SURPRISE, SURPRISES, SWEEPS, TINY_S, Line

Vector = tuple[float, float, float]
Measurement = tuple[Vector, float, float]  # features, seconds, weight


class PlainLine:
    """Of any number of features."""

    def __init__(self, start: Vector, spread: Vector, keep: float) -> None:
        self.start, self.keep = start, keep
        self.coefficients = list(start)
        self.pull = [1.0 / (s * s) for s in spread]
        self.squares = [[0.0] * len(start) for _ in start]
        self.targets = [0.0] * len(start)
        self.sides: list[tuple[int, float]] = []  # of surprises in a row: which, and its weight

    def observe(self, features: Vector, seconds: float, weight: float) -> None:
        predicted = max(added(c * f for c, f in zip(self.coefficients, features, strict=True)), TINY_S)
        keep = self.kept(seconds / predicted, weight)
        weight /= (NOISE * max(predicted, seconds)) ** 2
        for i, feature in enumerate(features):
            self.targets[i] = keep * self.targets[i] + weight * feature * seconds
            for j in range(i, len(features)):
                square = keep * self.squares[i][j] + weight * feature * features[j]
                self.squares[i][j] = self.squares[j][i] = square
        for _ in range(SWEEPS):
            for i in range(len(features)):
                self.coefficients[i] = max(self.best(i), 0.0)

    def kept(self, ratio: float, weight: float) -> float:
        side = 1 if ratio > SURPRISE else -1 if ratio < 1.0 / SURPRISE else 0
        if not side or any(side != before for before, _ in self.sides):
            self.sides = []
        if side:
            self.sides.append((side, weight))
        return KEEP_SURPRISED if added(w for _, w in self.sides) >= SURPRISES else self.keep

    def best(self, i: int) -> float:
        left = self.targets[i] + self.pull[i] * self.start[i]
        for j, coefficient in enumerate(self.coefficients):
            if j != i:
                left -= coefficient * self.squares[i][j]
        return left / (self.squares[i][i] + self.pull[i])


def added(values: Iterable[float]) -> float:
    """In order and rounded at each: ``sum`` is more exact in later Pythons."""
    total = 0.0
    for value in values:
        total += value
    return total


seconds = st.floats(1e-5, 100.0)
features = st.tuples(st.just(1.0), st.integers(0, 10**5), st.floats(0.0, 1e10))
measurements = st.lists(st.tuples(features, seconds, st.sampled_from([0.25, 1.0])), min_size=1, max_size=40)
starts = st.tuples(seconds, st.floats(0.0, 1e-2), st.floats(0.0, 1e-8))
STEEP = [((1.0, tokens, 0.0), 1e-5 * (tokens - 900), 1.0) for tokens in (1000, 2000, 4000)]  # below 0 at 0


@example((5e-3, 1e-4, 0.0), 5 * STEEP, 0.98)
@given(starts, measurements, st.sampled_from([0.98, 0.998]))
@settings(max_examples=50)
def test_a_line_learns_what_the_plain_one_does(start: Vector, seen: list[Measurement], keep: float) -> None:
    spread = (2e-2, 1e-3, 1e-8)
    line, plain = Line(start, spread, keep), PlainLine(start, spread, keep)
    for measurement in seen:
        line.observe(*measurement)
        plain.observe(*measurement)
        assert line.coefficients == plain.coefficients
    assert line.count == len(seen)
