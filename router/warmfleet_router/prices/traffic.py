"""How fast work arrives at a group of workers, over about the last half minute."""

from collections.abc import Iterable
from math import exp

MEMORY_S = 30.0
FIRST_S = 5.0  # what comes at once at the beginning is no rate: it counts as having come in so long
FULL = 0.97  # no queue is taken to be fuller than this: it would never empty
SHORTEST_S = 0.025  # waits below this are alike


class Traffic:
    """Rates of requests and of their work, both fading.

    The rate of requests is taken over the time that they took to come, which is short at the beginning: that
    nobody came before the first one says nothing. The rate of work is taken over all of MEMORY_S: what a
    fleet computes while its caches are cold does not go on like that.
    """

    __slots__ = ("_at", "_requests", "_seconds", "_work_s")

    def __init__(self) -> None:
        self._at: float | None = None  # of the newest request
        self._requests = 0.0  # all three fade by 1/e every MEMORY_S
        self._work_s = 0.0
        self._seconds = FIRST_S

    def placed(self, work_s: float, now: float) -> None:
        """One more request, with its seconds of prefill."""
        self._fade(now)
        self._requests += 1.0
        self._work_s += work_s

    def elsewhere(self, requests: int, now: float) -> None:
        """Other routers have placed so many on the same workers. They are taken to be as long as our own."""
        if requests:
            self._fade(now)
            self._work_s += requests * self.mean_s
            self._requests += requests

    @property
    def mean_s(self) -> float:
        """Mean prefill of a request."""
        return self._work_s / self._requests if self._requests else 0.0

    def _fade(self, now: float) -> None:
        if self._at is not None:
            keep = self._kept(now)
            self._requests *= keep
            self._work_s *= keep
            self._seconds = self._watched_s(keep)
        self._at = now

    def _kept(self, now: float) -> float:
        """The share that is left of what was known at the newest request."""
        at = self._at
        return exp((at - now) / MEMORY_S) if at is not None and now > at else 1.0

    def _watched_s(self, keep: float) -> float:
        return self._seconds * keep + MEMORY_S * (1.0 - keep)

    def pace(self, workers: int, now: float) -> float:
        """Requests that come to a worker while it empties its queue, for each second of that queue: arrivals
        over 1 - utilisation, as in a busy period of M/G/1."""
        keep, workers = self._kept(now), workers or 1
        busy = self._work_s * keep / (MEMORY_S * workers)
        idle = 1.0 - (busy if busy < FULL else FULL)
        return self._requests * keep / (self._watched_s(keep) * workers) / idle


def usual_wait_s(waits_s: Iterable[float]) -> float:
    """The wait of the requests that come next: the harmonic mean of all workers' waits. Requests go where the
    queue is short, so that one idle worker relieves them all."""
    count, visits = 0, 0.0
    for wait in waits_s:  # not by sum(), which rounds differently from release to release
        count += 1
        visits += 1.0 / (wait + SHORTEST_S)
    return count / visits - SHORTEST_S if count else 0.0
