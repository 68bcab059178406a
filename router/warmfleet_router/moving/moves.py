"""What pulls between workers have moved, by pair of source and target."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from warmfleet_proto.router_pb2 import ProgressRequest
from warmfleet_proto.transfer_pb2 import Pulled

MAX_PAIRS = 16_384  # remembered; the one that was first used is forgotten
FAILURES = frozenset({"refused", "gone", "lost", "corrupt", "given_up", "full"})
MOST_BYTES = 1 << 50  # of a pull; more is nonsense


@dataclass(slots=True)
class Moved:
    """Totals of one pair, since start."""

    source: str
    target: str
    pulls: int = 0
    tokens: int = 0  # that need not be computed
    bytes: int = 0
    wasted_bytes: int = 0  # late, twice or damaged
    seconds: float = 0.0
    saved_prefill_s: float = 0.0  # as predicted
    ahead_bytes: int = 0  # of the bytes, those for which no request waited
    evacuated_bytes: int = 0  # ... because their source was about to go
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def bytes_per_s(self) -> float:
        """Mean rate, from the request for a lease to the last commit."""
        return self.bytes / self.seconds if self.seconds else 0.0


class Moves:
    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], Moved] = {}

    def __iter__(self) -> Iterator[Moved]:
        return iter(self._pairs.values())

    def note(self, source: str, target: str, of: ProgressRequest, saved_s: float) -> None:
        """What a gateway reports of one pull."""
        moved = self._pair(source, target)
        moved.tokens += min(of.pulled_tokens, of.cached_tokens)
        moved.saved_prefill_s += saved_s
        _carry(moved, of.pulled_bytes, of.wasted_bytes, of.pull_s, of.pull_failure)

    def brought(self, source: str, target: str, of: Pulled, leaving: bool) -> None:
        """What a worker answers of blocks that it was to bring; ``leaving``: from one that drained."""
        moved = self._pair(source, target)
        moved.tokens += of.tokens
        moved.ahead_bytes += min(of.bytes, MOST_BYTES)
        moved.evacuated_bytes += min(of.bytes, MOST_BYTES) * leaving
        _carry(moved, of.bytes, of.wasted_bytes, of.seconds, of.failure)

    def _pair(self, source: str, target: str) -> Moved:
        moved = self._pairs.get((source, target))
        if moved is None:
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]
            moved = self._pairs[source, target] = Moved(source, target)
        return moved


def _carry(moved: Moved, count: int, wasted: int, seconds: float, failure: str) -> None:
    moved.pulls += 1
    moved.bytes += min(count, MOST_BYTES)
    moved.wasted_bytes += min(wasted, count, MOST_BYTES)
    moved.seconds += seconds
    if failure:
        moved.failures[failure if failure in FAILURES else "other"] += 1
