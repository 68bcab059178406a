"""What a worker's time costs, learned from what it does: prefill by uncached tokens and context, decode
steps by batch and context.

Nothing is asked of the user: a new worker starts from what its kind has learned, the first of all from
guesses that a few requests correct.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from warmfleet_router.prices.rates import Line

# Guesses for the very first worker; seconds, per token, per token x token of context.
PREFILL_GUESS = (5e-3, 1e-4, 0.0)
WHOLE_GUESS = (*PREFILL_GUESS[:2], 1e-2)  # seconds, per uncached token, per token of the answer
WHOLE_SPREAD = (2e-2, 1e-3, 5e-2)
STEP_GUESS = (1e-2, 1e-4, 0.0)  # seconds, per sequence of the batch, per token of context
PREFILL_SPREAD = (2e-2, 1e-3, 1e-8)
STEP_SPREAD = (5e-2, 1e-3, 1e-6)
COMPLETION_GUESS = 128.0
BESIDE_OTHERS = 0.25  # weight of a prefill measured while the worker had other work
FORGET = 0.05
SHARED_KEEP = 0.998  # per measurement of any worker: five hundred count
BETTER = 0.8  # times the shared line's error: the own one is in force
DOUBT = 1.0  # sum of |log of measured over predicted| before any measurement: one alone decides nothing


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
    """One worker's learned rates.

    ``shared`` is the line of prefill that all workers of its kind teach. It is in force until the worker's
    own line predicts it clearly better: most fleets are made of equal machines, and what differs between
    those is noise, which a price multiplies.
    """

    __slots__ = (
        "_completions",
        "_own",
        "_own_error",
        "_shared",
        "_shared_error",
        "_whole",
        "completion",
        "prefill",
        "span",
        "step",
        "ttft_error",
    )

    def __init__(self, own: Line, step: Line, shared: Line, completion: float = COMPLETION_GUESS) -> None:
        self.prefill = shared  # in force
        self.step = step
        self.completion = completion  # mean tokens of a completion
        self._own = own
        self._shared = shared
        self._own_error = self._shared_error = DOUBT
        self._whole = Line(WHOLE_GUESS, WHOLE_SPREAD)
        self._completions = 0
        self.span = 0.0  # mean tokens that an uncached token attends to
        self.ttft_error: float | None = None  # mean |measured - predicted| / measured

    def lent(self) -> "Rates":
        """Equal rates for another worker to start from."""
        own = Line(self._shared.coefficients, PREFILL_SPREAD)
        step = Line(self.step.coefficients, STEP_SPREAD)
        return Rates(own, step, self._shared, self.completion)

    @property
    def measured(self) -> bool:
        return self._own.count > 0

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
        return base + tokens * (token + pair * self.span)

    def step_s(self, batch: float, context: float) -> float:
        """Seconds of one decode step over ``batch`` sequences that attend to ``context`` tokens in all."""
        base, sequence, token = self.step.coefficients
        return base + batch * sequence + context * token

    def observe_prefill(self, uncached: int, context: int, seconds: float, alone: bool) -> None:
        span = context + 0.5 * uncached
        features = (1.0, float(uncached), uncached * span)
        self.span += FORGET * (span - self.span)
        weight = 1.0 if alone else BESIDE_OTHERS
        self._compare(features, seconds, weight)
        self._shared.observe(features, seconds, weight)
        self._own.observe(features, seconds, weight)

    def observe_whole(self, uncached: int, context: int, completion: float, seconds: float) -> None:
        """An answer that came all at once, after ``seconds``. Answers of other lengths tell how much of such
        a time is the prompt's and how much that of the ``completion`` tokens."""
        self._whole.observe((1.0, float(uncached), completion - 1.0), seconds)
        self.observe_prefill(uncached, context, self._whole.predict((1.0, float(uncached), 0.0)), alone=True)

    def _compare(self, features: tuple[float, ...], seconds: float, weight: float) -> None:
        """Which of the two lines predicts this worker."""
        own, shared = self._own, self._shared
        self._own_error = _faded(self._own_error, weight * own.error(features, seconds))
        self._shared_error = _faded(self._shared_error, weight * shared.error(features, seconds))
        self.prefill = own if self._own_error < BETTER * self._shared_error else shared

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


def shared_prefill() -> Line:
    """The line of a group of workers that nobody has measured."""
    return Line(PREFILL_GUESS, PREFILL_SPREAD, SHARED_KEEP)


def starting_rates(others: Iterable[Rates], shared: Line) -> Rates:
    """Rates for a worker that has not been measured: prefill as its kind has taught ``shared``, the rest as
    the median of those that have been measured. If there are none, the guesses."""
    known = [rates for rates in others if rates.measured]
    return Rates(
        Line(shared.coefficients, PREFILL_SPREAD),
        Line(_median([r.step for r in known], STEP_GUESS), STEP_SPREAD),
        shared,
        median([r.completion for r in known]) if known else COMPLETION_GUESS,
    )


def _faded(error: float, more: float) -> float:
    return error + FORGET * (DOUBT - error) + more


def _median(lines: list[Line], guess: tuple[float, ...]) -> list[float]:
    seen = [line.coefficients for line in lines if line.count]
    return [median(column) for column in zip(*seen, strict=True)] if seen else list(guess)
