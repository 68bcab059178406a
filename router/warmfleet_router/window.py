"""Short histories: what happened in the last minute, and percentiles of what was seen lately."""

from collections import deque

from warmfleet_router.view import HitRate

MINUTE_S = 60
TTFT_WINDOW_S = 300.0
TTFT_SAMPLES = 512


class Rolling:
    """A count over the last minute, in buckets of a second."""

    __slots__ = ("_buckets", "_sum")

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()  # [second, count]
        self._sum = 0

    def add(self, now: float, count: int = 1) -> None:
        second, buckets = int(now), self._buckets
        if buckets and (last := buckets[-1])[0] == second:
            last[1] += count
        else:
            buckets.append([second, count])
            self._trim(second)
        self._sum += count

    def total(self, now: float) -> int:
        self._trim(int(now))
        return self._sum

    def _trim(self, second: int) -> None:
        while self._buckets and self._buckets[0][0] <= second - MINUTE_S:
            self._sum -= self._buckets.popleft()[1]


class HitHistory:
    """A worker's growing totals of prompt and cached tokens; they begin again with each of its epochs."""

    __slots__ = ("_base", "_before", "_last", "_samples")

    def __init__(self) -> None:
        self._before: HitRate | None = None  # what it told first: of a time before ours
        self._base = HitRate()  # of the epochs before
        self._last = HitRate()  # as reported in this one
        self._samples: deque[tuple[float, HitRate]] = deque()

    def begin_epoch(self) -> None:
        self._base, self._last = self.total, HitRate()

    def report(self, now: float, hit: int, asked: int) -> None:
        """Totals since the epoch began; one that shrinks is not believed."""
        self._last = HitRate(max(hit, self._last.hit), max(asked, self._last.asked))
        if self._before is None:
            self._before = self._last
        if not self._samples or now >= self._samples[-1][0] + 1.0:
            self._samples.append((now, self.total))
            while len(self._samples) > 1 and self._samples[1][0] <= now - MINUTE_S:
                self._samples.popleft()

    @property
    def total(self) -> HitRate:
        return HitRate(self._base.hit + self._last.hit, self._base.asked + self._last.asked)

    def minute(self, now: float) -> HitRate:
        before = self._before or HitRate()
        for at, total in self._samples:
            if at <= now - MINUTE_S:
                before = total
        total = self.total
        return HitRate(total.hit - before.hit, total.asked - before.asked)


class Recent:
    """The latest values, for percentiles of the last five minutes."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=TTFT_SAMPLES)

    def add(self, now: float, value: float) -> None:
        self._values.append((now, value))

    def values(self, now: float) -> list[float]:
        return [value for at, value in self._values if at > now - TTFT_WINDOW_S]


def percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
