"""Follows one worker's presence events: epochs, gaps, duplicates, digests, snapshots.

Messages in, instructions out; the caller performs them on the index in the order given. What the
index holds is the worker's own set at the last applied seq, or empty while that is not known: a
removed block is never brought back by a late or foreign message.
"""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_proto.limits import DIGEST_BYTES, HASH_BYTES

from warmfleet_router.view import Counters

SLICE_BLOCKS = 512  # per instruction: digest and index together stay under a millisecond
MAX_HELD_BATCHES = 1024
MAX_HELD_BYTES = 8 << 20


class Store(NamedTuple):
    """hashes[i] (16 bytes each, packed) is now present at chain position depth + i."""

    tier: int
    depth: int
    hashes: bytes


class Remove(NamedTuple):
    tier: int
    hashes: bytes


class Clear(NamedTuple):
    """Everything of this worker."""


class WatchAgain(NamedTuple):
    """Watch again from here: a replay of what follows ``after_seq``, or a snapshot for epoch 0."""

    epoch: int
    after_seq: int


Instruction = Store | Remove | Clear | WatchAgain


class State(Enum):
    UNKNOWN = auto()  # a snapshot is awaited; the index holds nothing of this worker
    LOADING = auto()  # its parts are arriving
    LIVE = auto()
    GAP = auto()  # batches are missing; the index is as of ``seq``


class Cursor:
    """One per watched worker. ``receive`` must be run to its end before the next message is given."""

    def __init__(self, counters: Counters) -> None:
        self.state = State.UNKNOWN
        self.epoch = 0
        self.seq = 0
        self.counters = counters
        self.asks = 0
        self._digest = 0
        self._gap_end = 0  # a batch after the gap that has been asked for
        self._held: dict[int, pb.KvBatch] = {}
        self._held_bytes = 0

    @property
    def digest(self) -> bytes:
        """Over what the worker holds at ``seq``."""
        return digest_bytes(self._digest)

    @property
    def live(self) -> bool:
        """A snapshot is in, and nothing is missing since."""
        return self.state is State.LIVE

    def position(self) -> WatchAgain:
        """Where a new watch must begin, whatever happened to the one before."""
        if self.state in (State.LIVE, State.GAP):
            return WatchAgain(self.epoch, self.seq)
        return WatchAgain(0, 0)

    def receive(self, message: pb.WatchKvResponse) -> Iterator[Instruction]:
        """Instructions of at most SLICE_BLOCKS blocks each, so that the caller may pause between them."""
        if message.epoch != self.epoch:
            yield from self._begin_epoch(message.epoch, awaited=message.snapshot.first)
        match message.WhichOneof("body"):
            case "batch":
                yield from self._batch(message.batch)
            case "snapshot":
                yield from self._snapshot(message.snapshot)

    # ---- epochs and recovery

    def _begin_epoch(self, epoch: int, awaited: bool) -> Iterator[Instruction]:
        """Epochs have no order: an unknown one may be the past, so nothing of it counts before a snapshot."""
        self.counters.kv_new_epochs += 1
        self.epoch = epoch
        yield from self._forget(ask=not awaited)

    def restart(self) -> None:
        """The caller has cleared the index: what is heard next counts from a snapshot, whoever says it."""
        self.epoch = 0
        self._lose()

    def _lose(self) -> None:
        self.state, self.seq, self._digest = State.UNKNOWN, 0, 0
        self._drop_held()

    def _forget(self, ask: bool = True) -> Iterator[Instruction]:
        self._lose()
        yield Clear()
        if ask:
            yield self._ask(WatchAgain(0, 0))

    def _ask(self, ask: WatchAgain) -> WatchAgain:
        self.asks += 1
        return ask

    # ---- batches

    def _batch(self, batch: pb.KvBatch) -> Iterator[Instruction]:
        if self.state is State.UNKNOWN or self.state is State.LOADING:
            self._hold(batch)
        elif batch.seq == self.seq and batch.digest != self.digest:
            self.counters.kv_bad_digests += 1
            yield from self._forget()
        elif batch.seq <= self.seq:
            self.counters.kv_duplicates += 1
        elif batch.seq > self.seq + 1:
            self._hold(batch)
            if self.state is State.LIVE:
                yield self._miss(batch.seq)
        else:
            yield from self._apply(batch)
            yield from self._apply_held()

    def _apply(self, batch: pb.KvBatch) -> Iterator[Instruction]:
        was, self.state = self.state, State.UNKNOWN  # a caller that stops half-way needs a snapshot
        if not _well_formed(batch):
            self.counters.kv_malformed += 1
            yield from self._forget()
            return
        for event in batch.events:
            yield from self._event(event)
        if batch.digest != self.digest:
            self.counters.kv_bad_digests += 1
            yield from self._forget()
            return
        self.counters.kv_batches += 1
        self.seq, self.state = batch.seq, was

    def _event(self, event: pb.KvEvent) -> Iterator[Instruction]:
        match event.WhichOneof("body"):
            case "stored":
                yield from self._stored(event.stored)
            case "removed":
                tier = event.removed.tier
                for _, hashes in _slices(event.removed.hashes):
                    self._digest -= _digest(hashes, tier)
                    yield Remove(tier, hashes)
            case "cleared":
                self._digest = 0
                yield Clear()

    def _stored(self, stored: pb.Stored) -> Iterator[Instruction]:
        for offset, hashes in _slices(stored.hashes):
            self._digest += _digest(hashes, stored.tier)
            yield Store(stored.tier, stored.depth + offset, hashes)

    # ---- batches that must wait

    def _hold(self, batch: pb.KvBatch) -> None:
        """Keeps a batch until those before it have come. If there is no room, it is let go; it will be
        missing then, and asked for again."""
        size = batch.ByteSize()
        if batch.seq in self._held:
            self.counters.kv_duplicates += 1
        elif len(self._held) >= MAX_HELD_BATCHES or self._held_bytes + size > MAX_HELD_BYTES:
            self.counters.kv_held_dropped += 1
        else:
            self._held[batch.seq] = batch
            self._held_bytes += size

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _apply_held(self) -> Iterator[Instruction]:
        """Applies held batches that follow now. If a hole is left, it is a new gap."""
        while self.state in (State.LIVE, State.GAP) and (batch := self._held.pop(self.seq + 1, None)):
            yield from self._apply(batch)
        if self.state not in (State.LIVE, State.GAP):
            return
        self._held = {seq: batch for seq, batch in self._held.items() if seq > self.seq}
        self._held_bytes = sum(batch.ByteSize() for batch in self._held.values())
        if not self._held:
            self.state = State.LIVE
        elif self.state is State.LIVE or self.seq >= self._gap_end:
            # The gap that was asked for is filled: this is another one, of messages lost since.
            yield self._miss(min(self._held))

    def _miss(self, seen: int) -> WatchAgain:
        """Batches before ``seen`` are missing. An answer made from now on holds them all."""
        self.state, self._gap_end = State.GAP, seen
        self.counters.kv_gaps += 1
        return self._ask(WatchAgain(self.epoch, self.seq))

    # ---- snapshots

    def _snapshot(self, part: pb.KvSnapshot) -> Iterator[Instruction]:
        if part.first:
            self.state, self.seq, self._digest = State.LOADING, part.seq, 0
            yield Clear()
        elif self.state is not State.LOADING or part.seq != self.seq:
            return  # of a snapshot that was given up
        self.state = State.UNKNOWN
        if not all(_well_formed_run(stored.tier, stored.hashes) for stored in part.stored):
            self.counters.kv_malformed += 1
            yield from self._forget()
            return
        for stored in part.stored:
            yield from self._stored(stored)
        self.state = State.LOADING
        if part.last:
            yield from self._loaded(part.digest)

    def _loaded(self, digest: bytes) -> Iterator[Instruction]:
        if digest != self.digest:
            self.counters.kv_bad_digests += 1
            yield from self._forget()
            return
        self.counters.kv_snapshots += 1
        self.state = State.LIVE
        yield from self._apply_held()


def keys_of(hashes: bytes) -> bytes:
    """The 8-byte index keys of packed BlockHashes."""
    return memoryview(hashes).cast("Q")[::2].tobytes()


def _slices(hashes: bytes) -> Iterator[tuple[int, bytes]]:
    step = SLICE_BLOCKS * HASH_BYTES
    for start in range(0, len(hashes), step):
        yield start // HASH_BYTES, hashes[start : start + step]


def _digest(hashes: bytes, tier: int) -> int:
    return sum(presence(hashes[i : i + HASH_BYTES], tier) for i in range(0, len(hashes), HASH_BYTES))


def _well_formed(batch: pb.KvBatch) -> bool:
    return len(batch.digest) == DIGEST_BYTES and all(_well_formed_event(e) for e in batch.events)


def _well_formed_event(event: pb.KvEvent) -> bool:
    match event.WhichOneof("body"):
        case "stored":
            return _well_formed_run(event.stored.tier, event.stored.hashes)
        case "removed":
            return _well_formed_run(event.removed.tier, event.removed.hashes)
        case "cleared":
            return True
        case _:
            return False


def _well_formed_run(tier: int, hashes: bytes) -> bool:
    known: Sequence[int] = (pb.DEVICE, pb.HOST, pb.DISK)
    return tier in known and len(hashes) % HASH_BYTES == 0
