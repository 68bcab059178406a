"""Whether bringing blocks takes less time than computing them, learned from how long both took.

A source without experience is tried. One that failed or was late is left alone for a while, twice as long
each time.
"""

from warmfleet_worker.source import Source

_WEIGHT = 0.2  # of the newest measurement
_KEPT = 0.999  # of what was measured before, at each step
_FORGIVEN = 0.98  # a source found too slow is believed a little faster at each refusal, and tried again
_FIRST_PATIENCE_S = 1.0  # while the price of computing is not known
_LEAST_PATIENCE_S = 0.02
_REST_S = 5.0
_MAX_REST_S = 300.0


class Prefill:
    """Seconds to compute prompts: so much for each token, and so much for each pair of a token and one before
    it (attention). Fitted by least squares to recent steps."""

    def __init__(self) -> None:
        self.token_s, self.pair_s = 1.0, 0.0  # one block like another while nothing is known
        self._squares = [0.0, 0.0, 0.0]  # of tokens, their products with pairs, of pairs
        self._with_s = [0.0, 0.0]

    def computed(self, tokens: float, pairs: float, seconds: float) -> None:
        seen = (tokens * tokens, tokens * pairs, pairs * pairs)
        self._squares = [_KEPT * old + new for old, new in zip(self._squares, seen, strict=True)]
        self._with_s = [_KEPT * self._with_s[0] + tokens * seconds, _KEPT * self._with_s[1] + pairs * seconds]
        tt, tp, pp = self._squares
        ts, ps = self._with_s
        spread = tt * pp - tp * tp
        self.pair_s = max((ps * tt - ts * tp) / spread, 0.0) if spread > 1e-9 * tt * pp else 0.0
        self.token_s = max((ts - self.pair_s * tp) / tt, 0.0)

    def block_s(self, depth: int, size: int) -> float:
        """A block of ``size`` tokens after ``depth`` others."""
        return size * (self.token_s + self.pair_s * (depth + 0.5) * size)


class Pace:
    def __init__(self) -> None:
        self.prefill = Prefill()
        self.token_s: float | None = None  # to compute a prompt's token
        self.block_s: dict[Source, float] = {}  # to bring a block
        self._rests: dict[Source, tuple[float, float]] = {}  # until when, and how long it was

    def computed(self, tokens: int, pairs: float, seconds: float) -> None:
        """A step took so long for so many tokens of prompts, in so many pairs with tokens before them."""
        if tokens > 0:
            self.prefill.computed(tokens, pairs, seconds)
            self.token_s = _mean(self.token_s, seconds / tokens)

    def brought(self, source: Source, blocks: int, seconds: float) -> None:
        self.block_s[source] = _mean(self.block_s.get(source), seconds / blocks)
        self._rests.pop(source, None)

    def failed(self, source: Source, now: float) -> None:
        _, last = self._rests.get(source, (0.0, _REST_S / 2))
        rest = min(2 * last, _MAX_REST_S)
        self._rests[source] = (now + rest, rest)

    def worth(self, source: Source, blocks: int, tokens: int, now: float) -> bool:
        """Whether to bring ``blocks`` rather than compute their ``tokens``."""
        if now < self._rests.get(source, (now, 0.0))[0]:
            return False
        block_s = self.block_s.get(source)
        if block_s is None or self.token_s is None or blocks * block_s <= tokens * self.token_s:
            return True
        self.block_s[source] = block_s * _FORGIVEN
        return False

    def patience_s(self, source: Source, blocks: int, tokens: int) -> float:
        """How long to wait for ``blocks`` that could be computed instead. A source that has failed since it
        last brought something gets only a few times the time that it used to take, so that requests do not
        feel a disk in trouble."""
        if self.token_s is None:
            return _FIRST_PATIENCE_S
        computing_s = tokens * self.token_s
        if source not in self._rests:
            return max(_LEAST_PATIENCE_S, computing_s)
        usual_s = blocks * self.block_s.get(source, 0.0)
        return max(_LEAST_PATIENCE_S / 10, min(computing_s, max(computing_s / 20, 3 * usual_s)))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + _WEIGHT * (value - before)
