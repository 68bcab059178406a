"""How fast work arrives at a group of workers, over about the last half minute."""

from collections.abc import Iterable
from math import exp

MEMORY_S = 30.0
FULL = 0.97  # no queue is taken to be fuller than this: it would never empty
SHORTEST_S = 0.025  # waits below this are alike


class Traffic:
    __slots__ = ("_at", "_requests", "_work_s")

    def __init__(self) -> None:
        self._at = 0.0
        self._requests = 0.0  # both fade by 1/e every MEMORY_S
        self._work_s = 0.0

    def placed(self, work_s: float, now: float) -> None:
        """One more request, with its seconds of prefill."""
        self._fade(now)
        self._requests += 1.0
        self._work_s += work_s

    def elsewhere(self, requests: int, now: float) -> None:
        """That other routers have placed on the same workers. They are taken to be as long as our own."""
        if requests:
            self._fade(now)
            self._work_s += requests * self.mean_s
            self._requests += requests

    @property
    def mean_s(self) -> float:
        """Of a request's prefill."""
        return self._work_s / self._requests if self._requests else 0.0

    def _fade(self, now: float) -> None:
        keep = exp(-max(now - self._at, 0.0) / MEMORY_S)
        self._at = now
        self._requests *= keep
        self._work_s *= keep

    def pace(self, workers: int, now: float) -> float:
        """Requests that come to a worker while it empties its queue, for each second of that queue: arrivals
        over 1 - utilisation, as in a busy period of M/G/1."""
        keep = exp(-max(now - self._at, 0.0) / MEMORY_S) / (MEMORY_S * max(workers, 1))
        return self._requests * keep / (1.0 - min(self._work_s * keep, FULL))


def usual_wait_s(waits_s: Iterable[float]) -> float:
    """Of those who come next: the harmonic mean, since they go where the queue is short, so that one idle
    worker relieves them all."""
    count, visits = 0, 0.0
    for wait in waits_s:  # not by sum(), which rounds differently from release to release
        count += 1
        visits += 1.0 / (wait + SHORTEST_S)
    return count / visits - SHORTEST_S if count else 0.0
