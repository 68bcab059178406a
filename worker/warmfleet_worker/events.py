"""The presence log: which blocks can be read here, told as batches that a router can follow.

A batch carries (epoch, seq, digest). A router that missed some asks for a replay from the ring; one
that is too far behind, or knows another epoch, gets a snapshot.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_proto.limits import EVENT_RING_BATCHES, HASHES_PER_MESSAGE


class Tier(IntEnum):
    """Numbered as in worker.proto."""

    DEVICE = 1
    HOST = 2
    DISK = 3

    __hash__ = int.__hash__  # an enumeration's own is Python, and every block is looked up by it


class Appeared(Struct, frozen=True, gc=False):
    """A BlockHash became readable: its first copy in the tier was filled."""

    hash: bytes
    parent: bytes  # BlockHash of the block before it, or the root
    depth: int  # blocks before it
    tier: Tier = Tier.DEVICE


class Vanished(Struct, frozen=True, gc=False):
    """The last readable copy of a BlockHash in the tier is gone."""

    hash: bytes
    tier: Tier = Tier.DEVICE


class Wiped(NamedTuple):
    """Nothing is readable any more."""


Change = Appeared | Vanished | Wiped


class Stored(NamedTuple):
    """A run of one chain: hashes[i] is the block at position depth + i of its prefix."""

    tier: Tier
    depth: int
    hashes: tuple[bytes, ...]


class Removed(NamedTuple):
    tier: Tier
    hashes: tuple[bytes, ...]


class Cleared(NamedTuple):
    pass


Event = Stored | Removed | Cleared


class Batch(NamedTuple):
    seq: int
    digest: bytes  # of everything present after the batch
    events: tuple[Event, ...]


class Snapshot(NamedTuple):
    seq: int
    digest: bytes
    stored: tuple[Stored, ...]


class PresenceLog:
    def __init__(self, epoch: int, ring: int = EVENT_RING_BATCHES) -> None:
        self.epoch = epoch
        self.seq = 0
        self._present: dict[tuple[Tier, bytes], Appeared] = {}
        self._digest = 0
        self._ring: deque[Batch] = deque(maxlen=ring)

    @property
    def digest(self) -> bytes:
        return digest_bytes(self._digest)

    def __len__(self) -> int:
        return len(self._present)

    def publish(self, changes: Sequence[Change]) -> None:
        """Appends the changes as one batch, or as several when they exceed a message."""
        for start in range(0, len(changes), HASHES_PER_MESSAGE):
            part = changes[start : start + HASHES_PER_MESSAGE]
            for change in part:
                self._apply(change)
            self.seq += 1
            self._ring.append(Batch(self.seq, self.digest, tuple(_events(part))))

    def since(self, seq: int) -> list[Batch] | None:
        """All batches after ``seq``; None when the ring no longer has them (or never had)."""
        missing = self.seq - seq
        if not 0 <= missing <= len(self._ring):
            return None
        return [self._ring[i - missing] for i in range(missing)]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.seq, self.digest, tuple(_runs(self._present.values())))

    def _apply(self, change: Change) -> None:
        if isinstance(change, Appeared):
            key = (change.tier, change.hash)
            assert key not in self._present, "stored twice"
            self._present[key] = change
            self._digest += presence(change.hash, change.tier)
        elif isinstance(change, Vanished):
            del self._present[change.tier, change.hash]
            self._digest -= presence(change.hash, change.tier)
        else:
            self._present.clear()
            self._digest = 0


def _events(changes: Sequence[Change]) -> Iterator[Event]:
    """Neighbours of one kind become one event; the order between kinds is kept."""
    start = 0
    for end in range(1, len(changes) + 1):
        if end < len(changes) and type(changes[end]) is type(changes[start]):
            continue
        group = changes[start:end]
        if isinstance(group[0], Appeared):
            yield from _runs([c for c in group if isinstance(c, Appeared)])
        elif isinstance(group[0], Vanished):
            yield from _removals([c for c in group if isinstance(c, Vanished)])
        else:
            yield Cleared()
        start = end


def _runs(blocks: Iterable[Appeared]) -> Iterator[Stored]:
    run: list[Appeared] = []
    for block in blocks:
        if run and not (block.parent == run[-1].hash and block.tier == run[-1].tier):
            yield _stored(run)
            run = []
        run.append(block)
    if run:
        yield _stored(run)


def _stored(run: list[Appeared]) -> Stored:
    return Stored(run[0].tier, run[0].depth, tuple(block.hash for block in run))


def _removals(blocks: Iterable[Vanished]) -> Iterator[Removed]:
    by_tier: dict[Tier, list[bytes]] = {}
    for block in blocks:
        by_tier.setdefault(block.tier, []).append(block.hash)
    for tier, hashes in by_tier.items():
        yield Removed(tier, tuple(hashes))
