"""The cursor against a worker whose messages are lost, doubled and reordered."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_router.index.cursor import (
    MAX_HELD_BATCHES,
    SLICE_BLOCKS,
    Clear,
    Cursor,
    Instruction,
    Remove,
    State,
    Store,
    WatchAgain,
    keys_of,
)
from warmfleet_router.view import Counters

Present = set[tuple[bytes, int]]
TIERS = (pb.DEVICE, pb.HOST, pb.DISK)


def block(number: int) -> bytes:
    return number.to_bytes(16, "little")


def digest(present: Present) -> bytes:
    return digest_bytes(sum(presence(hash_, tier) for hash_, tier in present))


@dataclass
class Source:
    """A worker's side of WatchKv: its true set and every batch of its epoch."""

    epoch: int
    present: Present = field(default_factory=set)
    log: list[pb.WatchKvResponse] = field(default_factory=list)

    def commit(self, *events: pb.KvEvent) -> pb.WatchKvResponse:
        batch = pb.KvBatch(seq=len(self.log) + 1, digest=digest(self.present), events=events)
        self.log.append(pb.WatchKvResponse(epoch=self.epoch, batch=batch))
        return self.log[-1]

    def store(self, numbers: list[int], tier: int = pb.DEVICE) -> pb.WatchKvResponse:
        new = [block(n) for n in numbers if (block(n), tier) not in self.present]
        self.present |= {(hash_, tier) for hash_ in new}
        return self.commit(pb.KvEvent(stored=pb.Stored(tier=tier, depth=0, hashes=b"".join(new))))

    def remove(self, numbers: list[int], tier: int = pb.DEVICE) -> pb.WatchKvResponse:
        gone = [block(n) for n in numbers if (block(n), tier) in self.present]
        self.present -= {(hash_, tier) for hash_ in gone}
        return self.commit(pb.KvEvent(removed=pb.Removed(tier=tier, hashes=b"".join(gone))))

    def clear(self) -> pb.WatchKvResponse:
        self.present.clear()
        return self.commit(pb.KvEvent(cleared=pb.Cleared()))

    def snapshot(self) -> list[pb.WatchKvResponse]:
        """In parts of two blocks."""
        runs = [pb.Stored(tier=tier, depth=0, hashes=hash_) for hash_, tier in sorted(self.present)]
        cuts = [runs[i : i + 2] for i in range(0, len(runs), 2)] or [[]]
        return [
            pb.WatchKvResponse(
                epoch=self.epoch,
                snapshot=pb.KvSnapshot(
                    seq=len(self.log),
                    digest=digest(self.present),
                    stored=cut,
                    first=i == 0,
                    last=i == len(cuts) - 1,
                ),
            )
            for i, cut in enumerate(cuts)
        ]

    def answer(self, ask: WatchAgain) -> list[pb.WatchKvResponse]:
        return self.log[ask.after_seq :] if ask.epoch == self.epoch else self.snapshot()


@dataclass
class Mirror:
    """The router's side: performs instructions on a plain set."""

    cursor: Cursor = field(default_factory=lambda: Cursor(Counters()))
    present: Present = field(default_factory=set)

    def receive(self, message: pb.WatchKvResponse) -> list[WatchAgain]:
        return [i for i in self.perform(message) if isinstance(i, WatchAgain)]

    def perform(self, message: pb.WatchKvResponse) -> list[Instruction]:
        instructions = list(self.cursor.receive(message))
        for instruction in instructions:
            match instruction:
                case Store(tier, _, hashes):
                    assert len(hashes) <= SLICE_BLOCKS * 16
                    self.present |= {(hashes[i : i + 16], tier) for i in range(0, len(hashes), 16)}
                case Remove(tier, hashes):
                    self.present -= {(hashes[i : i + 16], tier) for i in range(0, len(hashes), 16)}
                case Clear():
                    self.present.clear()
        return instructions


def joined(source: Source) -> Mirror:
    mirror = Mirror()
    for message in source.snapshot():
        mirror.receive(message)
    assert mirror.cursor.state is State.LIVE
    return mirror


def test_snapshot_then_live_batches() -> None:
    source = Source(epoch=7)
    source.store([1, 2, 3])
    mirror = joined(source)
    assert mirror.present == source.present
    assert mirror.receive(source.remove([2])) == []
    assert mirror.present == source.present


def test_first_batch_of_an_unknown_epoch_asks_for_a_snapshot() -> None:
    source = Source(epoch=7)
    mirror = Mirror()
    assert mirror.receive(source.store([1])) == [WatchAgain(0, 0)]
    assert mirror.present == set()


def test_gap_asks_once_for_a_replay_and_applies_what_waited_in_order() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    lost, later, latest = source.store([1]), source.remove([1]), source.store([2])
    assert mirror.receive(later) == [WatchAgain(7, 0)]
    assert mirror.receive(latest) == []
    assert mirror.present == set()
    assert mirror.receive(lost) == []
    assert mirror.present == source.present == {(block(2), pb.DEVICE)}
    assert mirror.cursor.state is State.LIVE


def test_a_batch_lost_while_an_answer_is_under_way_is_asked_for_too() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    source.store([1])
    assert mirror.receive(source.store([2])) == [WatchAgain(7, 0)]
    answer = source.answer(WatchAgain(7, 0))
    source.store([3])  # lost, and too late for the answer
    assert mirror.receive(source.store([4])) == []
    assert mirror.receive(source.store([5])) == []
    asked = [ask for message in answer for ask in mirror.receive(message)]
    assert asked == [WatchAgain(7, 2)]
    assert [ask for message in source.answer(asked[0]) for ask in mirror.receive(message)] == []
    assert mirror.present == source.present
    assert mirror.cursor.state is State.LIVE


def test_live_batches_wait_for_the_snapshot_and_never_resurrect() -> None:
    """A batch older than the snapshot stores what a later one removed."""
    source = Source(epoch=7)
    stored, removed = source.store([1, 2]), source.remove([1])
    snapshot = source.snapshot()
    live = source.store([3])
    mirror = Mirror()
    for message in (stored, live, removed):
        mirror.receive(message)
    for message in snapshot:
        mirror.receive(message)
    assert mirror.present == source.present == {(block(2), pb.DEVICE), (block(3), pb.DEVICE)}
    mirror.receive(stored)
    assert mirror.present == source.present


def test_new_epoch_clears_at_once_and_ignores_what_the_old_one_still_says() -> None:
    old, new = Source(epoch=7), Source(epoch=8)
    old.store([1, 2])
    mirror = joined(old)
    late = old.store([3])
    assert mirror.receive(new.store([9])) == [WatchAgain(0, 0)]
    assert mirror.present == set()
    assert mirror.receive(late) == [WatchAgain(0, 0)]
    assert mirror.present == set()
    for message in new.snapshot():
        assert mirror.receive(message) == []
    assert mirror.present == new.present


def test_wrong_digest_clears_and_asks_for_a_snapshot() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    mirror.receive(source.store([1]))
    source.present.add((block(5), pb.HOST))  # present, but never announced
    assert mirror.receive(source.store([2])) == [WatchAgain(0, 0)]
    assert mirror.present == set()
    for message in source.snapshot():
        mirror.receive(message)
    assert mirror.present == source.present


def test_snapshot_with_a_lost_part_is_refused() -> None:
    source = Source(epoch=7)
    source.store([1, 2, 3, 4, 5])
    first, _, last = source.snapshot()
    mirror = Mirror()
    assert mirror.receive(first) == []
    assert mirror.receive(last) == [WatchAgain(0, 0)]
    assert mirror.present == set()


def test_repeated_seq_with_another_digest_is_noticed() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    message = source.store([1])
    mirror.receive(message)
    assert mirror.receive(message) == []
    other = pb.WatchKvResponse(epoch=7, batch=pb.KvBatch(seq=1, digest=bytes(16)))
    assert mirror.receive(other) == [WatchAgain(0, 0)]


@pytest.mark.parametrize(
    "event",
    [
        pb.KvEvent(stored=pb.Stored(tier=pb.DEVICE, hashes=bytes(15))),
        pb.KvEvent(stored=pb.Stored(tier=pb.TIER_UNSPECIFIED, hashes=bytes(16))),
        pb.KvEvent(removed=pb.Removed(tier=pb.DEVICE, hashes=bytes(17))),
        pb.KvEvent(),
    ],
)
def test_malformed_batches_empty_the_worker(event: pb.KvEvent) -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    mirror.receive(source.store([1]))
    assert mirror.receive(source.commit(event)) == [WatchAgain(0, 0)]
    assert mirror.present == set()
    assert mirror.cursor.counters.kv_malformed == 1


def test_held_batches_are_bounded() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    source.store([1])
    for _ in range(MAX_HELD_BATCHES + 10):
        mirror.receive(source.store([2]))
    assert mirror.cursor.counters.kv_held_dropped == 10
    asks = mirror.receive(source.log[0])
    assert asks == [WatchAgain(7, MAX_HELD_BATCHES + 1)] or mirror.cursor.state is State.LIVE
    for message in source.answer(mirror.cursor.position()):
        mirror.receive(message)
    assert mirror.present == source.present


def test_long_runs_come_in_slices_with_their_depth() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    hashes = b"".join(block(n) for n in range(SLICE_BLOCKS + 3))
    source.present = {(hashes[i : i + 16], pb.DEVICE) for i in range(0, len(hashes), 16)}
    event = pb.KvEvent(stored=pb.Stored(tier=pb.DEVICE, depth=4, hashes=hashes))
    stores = [i for i in mirror.perform(source.commit(event)) if isinstance(i, Store)]
    assert [(s.depth, len(s.hashes) // 16) for s in stores] == [(4, SLICE_BLOCKS), (4 + SLICE_BLOCKS, 3)]


def test_a_batch_given_up_half_way_needs_a_snapshot() -> None:
    source = Source(epoch=7)
    mirror = joined(source)
    half = mirror.cursor.receive(source.store([1, 2]))
    next(half)
    assert mirror.cursor.position() == WatchAgain(0, 0)


def test_keys_are_the_first_halves() -> None:
    assert keys_of(bytes(range(32))) == bytes(range(8)) + bytes(range(16, 24))


class Faulty(RuleBasedStateMachine):
    """Random sets and faults; healing (a new watch from the cursor's position) makes the mirror true."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = Source(epoch=1)
        self.mirror = Mirror()
        self.wire: list[pb.WatchKvResponse] = list(self.source.snapshot())
        self.history: list[pb.WatchKvResponse] = []

    def _numbers(self, numbers: list[int]) -> list[int]:
        return list(dict.fromkeys(numbers))

    @rule(numbers=st.lists(st.integers(0, 12), max_size=5), tier=st.sampled_from(TIERS))
    def store(self, numbers: list[int], tier: int) -> None:
        self.wire.append(self.source.store(self._numbers(numbers), tier))

    @rule(numbers=st.lists(st.integers(0, 12), max_size=5), tier=st.sampled_from(TIERS))
    def remove(self, numbers: list[int], tier: int) -> None:
        self.wire.append(self.source.remove(self._numbers(numbers), tier))

    @rule()
    def clear(self) -> None:
        self.wire.append(self.source.clear())

    @rule()
    def restart(self) -> None:
        self.source = Source(epoch=self.source.epoch + 1)

    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            self._receive(self.wire.pop(0))

    def _receive(self, message: pb.WatchKvResponse) -> None:
        self.history.append(message)
        for ask in self.mirror.receive(message):
            if self.random.random() < 0.7:  # or the answer is lost
                self.wire.extend(self.source.answer(ask))

    @rule()
    def lose(self) -> None:
        if self.wire:
            self.wire.pop(self.random.randrange(len(self.wire)))

    @rule()
    def reorder(self) -> None:
        self.random.shuffle(self.wire)

    @rule()
    def double(self) -> None:
        if self.history:
            self.wire.insert(0, self.random.choice(self.history))

    @rule()
    def heal(self) -> None:
        self.wire = self.source.answer(self.mirror.cursor.position())
        for _ in range(3):
            wire, self.wire = self.wire, []
            for message in wire:
                for ask in self.mirror.receive(message):
                    self.wire = self.source.answer(ask)
        assert self.mirror.cursor.state is State.LIVE
        assert self.mirror.present == self.source.present

    @invariant()
    def truth_at_seq(self) -> None:
        """What is held is the set at the applied seq of that epoch: never a block removed before it."""
        cursor = self.mirror.cursor
        if cursor.state is State.UNKNOWN:
            assert self.mirror.present == set()
        if cursor.epoch == self.source.epoch and cursor.state in (State.LIVE, State.GAP):
            assert self.mirror.present == replayed(self.source.log[: cursor.seq])


def replayed(log: list[pb.WatchKvResponse]) -> Present:
    present: Present = set()
    for message in log:
        for event in message.batch.events:
            run = event.stored if event.HasField("stored") else event.removed
            blocks = {(run.hashes[i : i + 16], run.tier) for i in range(0, len(run.hashes), 16)}
            match event.WhichOneof("body"):
                case "stored":
                    present |= blocks
                case "removed":
                    present -= blocks
                case _:
                    present.clear()
    return present


TestFaulty = Faulty.TestCase
TestFaulty.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
