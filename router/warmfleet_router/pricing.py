"""What a worker's time costs, learned from what it does: prefill by uncached tokens and context, decode
steps by batch and context.

Nothing is asked of the user: a new worker starts from the fleet's median, the first of all from
guesses that a few requests correct.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from warmfleet_router.rates import Line

# Guesses for the very first worker; seconds, per token, per token x token of context.
PREFILL_GUESS = (5e-3, 1e-4, 0.0)
STEP_GUESS = (1e-2, 1e-4, 0.0)  # seconds, per sequence of the batch, per token of context
PREFILL_SPREAD = (2e-2, 1e-3, 1e-8)
STEP_SPREAD = (5e-2, 1e-3, 1e-6)
COMPLETION_GUESS = 128.0
BESIDE_OTHERS = 0.25  # weight of a prefill measured while the worker had other work
FORGET = 0.05


@dataclass(slots=True)
class Prefills:
    """Prompts to compute, summed by what their price depends on: rates learned later price them anew."""

    prompts: int = 0
    tokens: int = 0  # uncached
    pairs: int = 0  # twice the sum of each prompt's uncached tokens x mean context of them

    def count(self, uncached: int, context: int, sign: int) -> None:
        """``sign`` more prompts, each of ``uncached`` tokens after ``context`` cached ones."""
        self.prompts += sign
        self.tokens += sign * uncached
        self.pairs += sign * uncached * (2 * context + uncached)


class Rates:
    """One worker's learned rates."""

    __slots__ = ("_completions", "_span", "completion", "prefill", "step", "ttft_error")

    def __init__(self, prefill: Line, step: Line, completion: float = COMPLETION_GUESS) -> None:
        self.prefill = prefill
        self.step = step
        self.completion = completion  # mean tokens of a completion
        self._completions = 0
        self._span = 0.0  # mean tokens that an uncached token attends to
        self.ttft_error: float | None = None  # mean |measured - predicted| / measured

    def lent(self) -> "Rates":
        """Equal rates for another worker to start from."""
        prefill = Line(self.prefill.coefficients, PREFILL_SPREAD)
        return Rates(prefill, Line(self.step.coefficients, STEP_SPREAD), self.completion)

    @property
    def measured(self) -> bool:
        return self.prefill.count > 0

    def prefill_s(self, uncached: float, context: float) -> float:
        """Seconds to compute ``uncached`` tokens that follow ``context`` cached ones."""
        base, token, pair = self.prefill.coefficients
        return base + uncached * (token + pair * (context + 0.5 * uncached))

    def all_s(self, prefills: Prefills) -> float:
        """Seconds to compute all of them, one after another."""
        base, token, pair = self.prefill.coefficients
        return base * prefills.prompts + token * prefills.tokens + 0.5 * pair * prefills.pairs

    def queue_s(self, tokens: float) -> float:
        """Seconds to compute ``tokens`` of waiting prompts; how many prompts and how long is not known."""
        if not tokens:
            return 0.0
        base, token, pair = self.prefill.coefficients
        return base + tokens * (token + pair * self._span)

    def step_s(self, batch: float, context: float) -> float:
        """Seconds of one decode step over ``batch`` sequences that attend to ``context`` tokens in all."""
        base, sequence, token = self.step.coefficients
        return base + batch * sequence + context * token

    def observe_prefill(self, uncached: int, context: int, seconds: float, alone: bool) -> None:
        span = context + 0.5 * uncached
        features = (1.0, float(uncached), uncached * span)
        self._span += FORGET * (span - self._span)
        self.prefill.observe(features, seconds, 1.0 if alone else BESIDE_OTHERS)

    def observe_step(self, batch: float, context: float, seconds: float) -> None:
        self.step.observe((1.0, batch, context), seconds)

    def observe_completion(self, tokens: float) -> None:
        """A plain mean at first: a guess that fades slowly would look like queues where there are none."""
        self._completions += 1
        self.completion += max(FORGET, 1.0 / self._completions) * (tokens - self.completion)

    def observe_ttft(self, predicted: float, measured: float) -> None:
        if measured <= 0:
            return
        error = min(abs(measured - predicted) / measured, 10.0)
        self.ttft_error = (
            error if self.ttft_error is None else self.ttft_error + FORGET * (error - self.ttft_error)
        )


def starting_rates(others: Iterable[Rates]) -> Rates:
    """Of a worker not measured yet: the median of those that have been, else the guesses."""
    known = [rates for rates in others if rates.measured]
    return Rates(
        Line(_median([r.prefill for r in known], PREFILL_GUESS), PREFILL_SPREAD),
        Line(_median([r.step for r in known], STEP_GUESS), STEP_SPREAD),
        median([r.completion for r in known]) if known else COMPLETION_GUESS,
    )


def _median(lines: list[Line], guess: tuple[float, ...]) -> list[float]:
    seen = [line.coefficients for line in lines if line.count]
    return [median(column) for column in zip(*seen, strict=True)] if seen else list(guess)
