"""Which transport a pull takes: what both ends have, by the bandwidth that this pair has seen with each."""

from collections.abc import Iterable
from typing import NamedTuple

GUESSES = {"cuda": 300e9, "nixl": 20e9, "shm": 4e9, "tcp": 2e9}  # bytes/s, until it was measured
FORGET_S = 60.0  # then a transport may be better than it was, or work again
LEAST_BYTES = 4 << 20  # of a pull whose time says something of the bandwidth
_MAX_PAIRS = 1024
_NEWEST = 0.5  # of what is known


class _Seen(NamedTuple):
    bytes_per_s: float
    at: float


class Choice:
    """A transport is tried on a guess, kept while it is the fastest, and left where it fails."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}  # by source and transport; the oldest first

    def best(self, source: str, names: Iterable[str], now: float) -> str | None:
        """The fastest of the transports that can be tried; None if there is none."""
        return max(names, key=lambda name: self.bytes_per_s(source, name, now), default=None)

    def bytes_per_s(self, source: str, name: str, now: float) -> float:
        seen = self._known(source, name, now)
        return GUESSES[name] if seen is None else seen.bytes_per_s

    def usual(self, source: str, name: str) -> float:
        """Bytes/s, however long ago they were seen: of use where what comes corrects it."""
        seen = self._seen.get((source, name))
        return GUESSES[name] if seen is None else seen.bytes_per_s

    def moved(self, source: str, name: str, count: int, seconds: float, now: float) -> None:
        """So many bytes came in so long."""
        if count < LEAST_BYTES or seconds <= 0:
            return
        rate, seen = count / seconds, self._known(source, name, now)
        self._note(
            source, name, rate if seen is None else seen.bytes_per_s * (1 - _NEWEST) + rate * _NEWEST, now
        )

    def failed(self, source: str, name: str, now: float) -> None:
        """Nothing came, or what came was damaged."""
        self._note(source, name, 0.0, now)

    def _known(self, source: str, name: str, now: float) -> _Seen | None:
        seen = self._seen.get((source, name))
        return seen if seen is not None and now - seen.at < FORGET_S else None

    def _note(self, source: str, name: str, bytes_per_s: float, now: float) -> None:
        self._seen.pop((source, name), None)
        self._seen[source, name] = _Seen(bytes_per_s, now)
        if len(self._seen) > _MAX_PAIRS:
            del self._seen[next(iter(self._seen))]
