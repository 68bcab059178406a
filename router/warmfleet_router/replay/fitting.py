"""An engine's profile from what its steps took: least squares with coefficients that are never negative.

Errors count relative to the measurement, and by their size rather than its square, so that a few
outliers pass by. Pure.
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import median

import msgspec

from warmfleet_router.replay.profile import Profile

NAMES = (
    "prefill_base", "prefill_token", "prefill_pair", "decode_base", "decode_sequence", "decode_token",
)  # fmt: skip
ROUNDS = 20  # of weighing by the error of the round before
FLOOR = 0.005  # errors below this are alike
ORDER = (1, 0, 2, 3, 4, 5)  # of NAMES: where one explains as much as another, the first
SAME = 1e-9  # of what is explained: no more than another
SINGULAR = 1e-9  # of a pivot, after columns are scaled to one


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step, or one prompt computed alone in ``passes`` of them. ``chunks`` are (tokens, cached context
    before them), ``context`` is the sum over the decoding sequences."""

    seconds: float
    chunks: list[tuple[int, int]] = []
    batch: int | float = 0
    context: int | float = 0
    passes: int = 1


def fit(records: Sequence[Measured], start: Profile) -> Profile:
    """``start`` with the coefficients that explain ``records`` best. Raises ValueError where none do."""
    good = [r for r in records if r.seconds > 0 and (r.chunks or r.batch)]
    if not good:
        raise ValueError("no step with a duration and with tokens to compute")
    rows = [[f / r.seconds for f in features(r)] for r in good]
    weights = [1.0] * len(rows)
    for _ in range(ROUNDS):
        coefficients = _solve(rows, weights)
        weights = [1.0 / max(abs(_error(row, coefficients)), FLOOR) for row in rows]
    return msgspec.structs.replace(start, **dict(zip(NAMES, coefficients, strict=True)))


def features(r: Measured) -> list[float]:
    """What the six coefficients are multiplied by, in the order of NAMES."""
    return [
        float(r.passes if r.chunks else 0),
        float(sum(tokens for tokens, _ in r.chunks)),
        sum(tokens * (context + 0.5 * tokens) for tokens, context in r.chunks),
        float(bool(r.batch)),
        float(r.batch),
        float(r.context),
    ]


def predict(profile: Profile, r: Measured) -> float:
    """Seconds."""
    coefficients = [float(getattr(profile, name)) for name in NAMES]
    return sum(c * f for c, f in zip(coefficients, features(r), strict=True))


def error(profile: Profile, records: Sequence[Measured]) -> float:
    """The median of |predicted - measured| / measured."""
    return median(abs(predict(profile, r) / r.seconds - 1.0) for r in records)


def _error(row: Sequence[float], coefficients: Sequence[float]) -> float:
    return sum(c * f for c, f in zip(coefficients, row, strict=True)) - 1.0


def _solve(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Weighted least squares of rows x coefficients = 1 under coefficients >= 0: exact, since with six
    of them every choice of those that are not nothing can be tried."""
    width = len(NAMES)
    scale = [sum(w * row[i] ** 2 for row, w in zip(rows, weights, strict=True)) ** 0.5 for i in range(width)]
    squares = [
        [sum(w * row[i] * row[j] for row, w in zip(rows, weights, strict=True)) for j in range(width)]
        for i in range(width)
    ]
    targets = [sum(w * row[i] for row, w in zip(rows, weights, strict=True)) for i in range(width)]
    some = [i for i in ORDER if scale[i]]
    best, most = [0.0] * width, 0.0
    for size in range(1, len(some) + 1):
        for chosen in combinations(some, size):
            part = _eliminate(
                [[squares[i][j] / (scale[i] * scale[j]) for j in chosen] for i in chosen],
                [targets[i] / scale[i] for i in chosen],
            )
            if part is None or min(part) < 0:
                continue
            # What is explained of the sum of squares; all candidates are least squares of their own.
            explained = sum(c * targets[i] / scale[i] for c, i in zip(part, chosen, strict=True))
            if explained > most * (1.0 + SAME):
                best, most = [0.0] * width, explained
                for c, i in zip(part, chosen, strict=True):
                    best[i] = c / scale[i]
    return best


def _eliminate(matrix: list[list[float]], target: list[float]) -> list[float] | None:
    """Gauss, symmetric positive matrices; None where one is singular."""
    n = len(target)
    rows = [[*row, t] for row, t in zip(matrix, target, strict=True)]
    for i in range(n):
        if rows[i][i] < SINGULAR:
            return None
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    for i in reversed(range(n)):
        known = sum(rows[i][j] * rows[j][n] for j in range(i + 1, n))
        rows[i][n] = (rows[i][n] - known) / rows[i][i]
    return [row[n] for row in rows]
