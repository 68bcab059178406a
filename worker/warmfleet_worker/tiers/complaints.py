"""Errors of a disk come in crowds: each kind is logged once a minute at most, and all are counted."""

import logging
from collections import Counter
from collections.abc import Callable

_log = logging.getLogger(__name__)

_QUIET_S = 60.0


class Complaints:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._last: dict[str, float] = {}

    def say(self, kind: str, what: object) -> None:
        """``kind`` is of a closed set: it labels a metric."""
        self.counts[kind] += 1
        now = self._clock()
        if now - self._last.get(kind, -_QUIET_S) >= _QUIET_S:
            self._last[kind] = now
            _log.error("disk tier: %s: %s (%d so far)", kind, what, self.counts[kind])
