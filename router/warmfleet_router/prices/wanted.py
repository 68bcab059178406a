"""Prefixes that are asked for again and again, and what requests lose because too few workers hold them.

A prompt counts for the deepest mark within what some worker holds of it. A conversation is remembered in
full that way, a system prompt as far as the last two prompts that begin with it are the same.
"""

from collections.abc import Sequence
from itertools import islice
from math import exp

from warmfleet_proto.hashing import root_hash
from warmfleet_proto.limits import KEY_BYTES

from warmfleet_router.prices.demand import MAX_PREFIXES, marks

MEMORY_S = 60.0
MAX_BYTES = 32 << 20  # of remembered keys; the longest unused go first
MAX_DUE = 256
MOST_HOLDERS = 4  # are told apart
NEAR_SHARE = 0.1  # who lacks less of a prefix than this holds it: it has grown since


class Prefix:
    """``keys`` of its blocks, packed."""

    __slots__ = ("_at", "_blocks", "_last", "_requests", "mark", "root")

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.mark = 0  # key of the block at its deepest mark
        self._last = b""  # keys of the last prompt
        self._blocks = 0  # of those, leading ones that belong to the prefix
        self._requests = 0.0  # fading by 1/e every MEMORY_S
        self._at = 0.0

    @property
    def keys(self) -> bytes:
        return self._last[: self._blocks * KEY_BYTES]

    @property
    def size(self) -> int:
        """Bytes that remembering it takes."""
        return len(self._last)

    def requests(self, now: float) -> float:
        """How many asked for it in about the last MEMORY_S."""
        return self._requests * exp(-max(now - self._at, 0.0) / MEMORY_S)

    def asked(self, mark: int, keys: bytes, now: float) -> None:
        """Once more, by a prompt with these keys."""
        common = len(keys) if keys.startswith(self._last) else _common(keys, self._last)
        self.mark, self._last, self._blocks = mark, keys, common // KEY_BYTES
        self._requests, self._at = self.requests(now) + 1.0, now

    def continued(self, keys: bytes) -> bool:
        """Whether a prompt begins with all of the last prompt that asked for it."""
        return keys.startswith(self._last)


class _Losses:
    """Seconds, fading as requests do."""

    __slots__ = ("at", "lost_s", "shared_s")

    def __init__(self) -> None:
        self.lost_s = self.shared_s = self.at = 0.0

    @property
    def share(self) -> float:
        return self.lost_s / self.shared_s if self.shared_s else 0.0


class Wanted:
    """Which prefixes of one group of workers are worth more copies."""

    def __init__(self, fingerprint: bytes, block_size: int) -> None:
        self._fingerprint = fingerprint
        self._block_size = block_size
        self._prefixes: dict[int, Prefix] = {}  # by mark, the longest unused first
        self._bytes = 0
        self._due: dict[int, Prefix] = {}
        self._losses = [_Losses() for _ in range(MOST_HOLDERS)]  # by the number of holders, from one on

    def __len__(self) -> int:
        return len(self._prefixes)

    def asked(self, keys: Sequence[int], shared: int, salt: bytes, now: float) -> Prefix | None:
        """A prompt of which some worker holds ``shared`` tokens; None where that is too short to matter."""
        marked = marks(self._block_size, keys, shared)
        if not marked:
            return None
        mark, before = marked[0], marked[1] if len(marked) > 1 else None
        packed = memoryview(keys).tobytes()  # type: ignore[arg-type]
        prefix = self._taken(mark, before, packed)
        if prefix is None:
            prefix = Prefix(root_hash(self._fingerprint, self._block_size, salt=salt))
        prefix.asked(mark, packed, now)
        self._prefixes[mark] = prefix
        self._bytes += prefix.size
        while len(self._prefixes) > MAX_PREFIXES or self._bytes > MAX_BYTES:
            self._take(next(iter(self._prefixes)))
        return prefix

    def lost(self, holders: int, lost_s: float, shared_s: float, now: float) -> None:
        """A request takes ``lost_s`` more than if every worker held what ``holders`` do, which is worth
        ``shared_s`` of computing."""
        losses = self._losses[min(holders, MOST_HOLDERS) - 1]
        keep = exp(-max(now - losses.at, 0.0) / MEMORY_S)
        losses.lost_s = losses.lost_s * keep + lost_s
        losses.shared_s = losses.shared_s * keep + shared_s
        losses.at = now

    def saves(self, holders: int) -> float:
        """What one more copy saves a request, as a share of what computing its shared prefix takes."""
        here = self._losses[min(holders, MOST_HOLDERS) - 1].share
        if holders >= MOST_HOLDERS:
            return here / holders
        more = self._losses[holders]
        return here - (more.share if more.shared_s else here / 2)

    def computed(self, prefix: Prefix) -> None:
        """Now all of a prompt is held where it was computed: it may be time for a copy."""
        if len(self._due) < MAX_DUE:
            self._due[prefix.mark] = prefix

    def take_due(self, most: int) -> list[Prefix]:
        """The prefixes that have been due for longest, ``most`` at most."""
        marks_due = list(islice(self._due, most))
        return [self._due.pop(mark) for mark in marks_due]

    def hottest(self, now: float) -> list[Prefix]:
        """All that are remembered."""
        return sorted(self._prefixes.values(), key=lambda prefix: prefix.requests(now), reverse=True)

    def _taken(self, mark: int, before: int | None, packed: bytes) -> Prefix | None:
        """The prefix of that mark, or the one that has just grown to it."""
        if mark in self._prefixes:
            return self._take(mark)
        grown = self._prefixes.get(before) if before is not None else None
        if before is not None and grown is not None and grown.continued(packed):
            return self._take(before)
        return None

    def _take(self, mark: int) -> Prefix:
        prefix = self._prefixes.pop(mark)
        self._bytes -= prefix.size
        return prefix


def _common(one: bytes, other: bytes) -> int:
    """Leading bytes that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
