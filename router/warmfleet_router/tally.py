"""Counts that are touched for every token of every stream: without the locks of prometheus_client's own,
which cost five microseconds a token. One thread counts, and that thread answers scrapes."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tokens(Collector):
    """Tokens sent, and the seconds between them: ``bounds`` are those of the histogram's buckets."""

    def __init__(self, prefix: str, bounds: Sequence[float]) -> None:
        self._prefix = prefix
        self._bounds = bounds
        self._gaps = [0] * (len(bounds) + 1)
        self._seconds = 0.0
        self._sent = 0

    def sent(self, count: int, gap_s: float | None) -> None:
        """``gap_s`` since the stream's last ones, None for the first."""
        self._sent += count
        if gap_s is not None:
            self._gaps[bisect_left(self._bounds, gap_s)] += 1
            self._seconds += gap_s

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        yield CounterMetricFamily(
            f"{self._prefix}gateway_completion_tokens", "Tokens sent to clients.", value=self._sent
        )
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._gaps)), strict=True))
        about = "Between the tokens of one stream."
        yield HistogramMetricFamily(
            f"{self._prefix}itl_seconds", about, buckets=buckets, sum_value=self._seconds
        )
