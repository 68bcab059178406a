"""An engine's profile from what its steps took: least squares with coefficients that are never negative.

Errors count relative to the measurement or the prediction, whichever is more, and by their size rather
than its square: a few outliers pass by, those that took next to nothing too. Pure.
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

import msgspec
from warmfleet_proto.work import Work, work_of

from warmfleet_router.replay.profile import Profile

NAMES = (  # of what a Work's sums are multiplied by, in their order
    "prefill_base", "prefill_token", "prefill_pair", "decode_base", "decode_sequence", "decode_token",
)  # fmt: skip
ROUNDS = 20  # of weighing by the error of the round before
FLOOR = 0.005  # errors below this are alike
ORDER = (1, 0, 2, 3, 4, 5)  # of NAMES: where one explains as much as another, the first
SAME = 1e-9  # of what is explained: no more than another
SINGULAR = 1e-9  # of a pivot, after columns are scaled to one


class Sample(NamedTuple):
    """A step, or several together."""

    seconds: float
    work: Work


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step, or one prompt computed alone in ``passes`` of them. ``chunks`` are (tokens, cached context
    before them), ``context`` is the sum over the decoding sequences."""

    seconds: float
    chunks: list[tuple[int, int]] = []
    batch: int = 0
    context: int = 0
    passes: int = 1

    @property
    def sample(self) -> Sample:
        prompts = work_of(self.chunks)
        sequences = prompts.decode_sequences + self.batch  # a chunk of one token is computed like these
        work = prompts._replace(
            prompt_steps=self.passes * prompts.prompt_steps,
            decode_steps=bool(sequences),
            decode_sequences=sequences,
            decode_context=prompts.decode_context + self.context,
        )
        return Sample(self.seconds, work)


def fit(samples: Sequence[Sample], start: Profile) -> Profile:
    """``start`` with the coefficients that explain ``samples`` best. Raises ValueError where none do."""
    good = [sample for sample in samples if sample.seconds > 0 and any(sample.work)]
    if not good:
        raise ValueError("no step with a duration and with tokens to compute")
    weights = [seconds**-2 for seconds, _ in good]
    for _ in range(ROUNDS):
        coefficients = _solve(good, weights)
        found = msgspec.structs.replace(start, **dict(zip(NAMES, coefficients, strict=True)))
        weights = [_weight(seconds, found.step_s(work)) for seconds, work in good]
    return found


def error(profile: Profile, samples: Sequence[Sample]) -> float:
    """The median of |predicted - measured| / measured."""
    return median(abs(profile.step_s(work) / seconds - 1.0) for seconds, work in samples if seconds > 0)


def _weight(measured: float, predicted: float) -> float:
    """A weight in s^-2 with which a squared error counts by its size, not by its square."""
    most = max(measured, predicted)
    return 1.0 / (most * max(abs(predicted - measured), FLOOR * most))


def _solve(samples: Sequence[Sample], weights: Sequence[float]) -> list[float]:
    """Weighted least squares of work x coefficients = seconds under coefficients >= 0: exact, since with
    six of them every choice of those that are not nothing can be tried."""
    width = len(NAMES)
    weighted = [(weight, *sample) for weight, sample in zip(weights, samples, strict=True)]
    squares = [[sum(w * x[i] * x[j] for w, _, x in weighted) for j in range(width)] for i in range(width)]
    targets = [sum(w * s * x[i] for w, s, x in weighted) for i in range(width)]
    scale = [squares[i][i] ** 0.5 for i in range(width)]
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
