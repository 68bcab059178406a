"""Follows one engine's numbered batches: gaps, replays, restarts, nonsense.

Frames and ``now`` (monotonic seconds) in, instructions out; the caller performs them in order and
answers an AskReplay by giving the replayed batches to ``replayed`` and then calling
``replay_ended``. What the index holds is a part of the engine's own set as of the last applied
batch, and nothing while that cannot be said.

Numbers count from 0 with every start of the engine, and nothing else tells a start: a number that
goes backwards is one, and after a broken connection the last batch is asked for again and compared.
"""

from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple, Protocol

import xxhash
from warmfleet_proto.errors import Corrupt

from warmfleet_router.events.batch import Batch
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.index.cursor import Instruction
from warmfleet_router.view import Counters

MAX_HELD_BATCHES = 4096
MAX_HELD_BYTES = 16 << 20
REPLAY_S = 3.0  # for an answer to have come in full
QUARANTINE_S = 60.0
BURST = 8_000  # batches within BURST_S: an engine makes one a step, and some may have waited for us
BURST_S = 4.0
MAX_SEQ = 1 << 62


class AskReplay(NamedTuple):
    """All batches from this number on."""

    after: int


Told = Instruction | AskReplay


class Decoder(Protocol):
    def batch(self, payload: bytes) -> Batch:
        """Raises Corrupt."""


class State(Enum):
    LIVE = auto()
    REPLAY = auto()  # asked for; live batches wait
    QUARANTINE = auto()  # what it said made no sense: nothing of it counts for a while


class Follower:
    """One publisher. ``can_replay``: it has a socket to ask. Every iterator is to be run to its end.

    ``rank``: the one that may speak here; -1: whoever does.
    """

    def __init__(
        self, decoder: Decoder, mirror: Mirror, counters: Counters, can_replay: bool, rank: int = -1
    ) -> None:
        self.state = State.LIVE
        self.next = 0  # the number of the batch to be applied next
        self.why = ""  # it is in quarantine
        self.ignored = 0  # events about something else
        self._decoder = decoder
        self._mirror = mirror
        self._counters = counters
        self._can_replay = can_replay
        self._rank = rank
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._heard = -1  # the latest number on the live socket
        self._last = b""  # digest of the batch applied last
        self._unsure = False  # whether that was this incarnation's
        self._until = 0.0  # the end of the state, where it has one
        self._burst_at = 0.0
        self._burst = 0

    # ---- what arrives

    def begin(self, now: float) -> Iterator[Told]:
        """It is listened to from now on: what it said before is asked for, as far as it remembers."""
        if self._can_replay:
            yield from self._ask(now)

    def receive(self, seq: int, payload: bytes, now: float) -> Iterator[Told]:
        """A live batch."""
        if self.state is State.QUARANTINE:
            return
        if not 0 <= seq < MAX_SEQ or not self._in_pace(now):
            yield from self._quarantine("a flood of batches" if 0 <= seq < MAX_SEQ else "no number", now)
            return
        backwards, self._heard = seq <= self._heard, seq
        if backwards:
            yield from self._restart()
        if self.state is State.REPLAY:
            self._hold(seq, payload)
        elif seq > self.next or self._unsure:
            self._counters.kv_gaps += seq > self.next
            self._hold(seq, payload)
            yield from self._ask(now)
        elif seq < self.next:
            self._counters.kv_duplicates += 1  # a replay brought it already
        else:
            yield from self._apply(seq, payload, now)

    def replayed(self, seq: int, payload: bytes, now: float) -> Iterator[Told]:
        """One batch of the answer to an AskReplay."""
        if self.state is not State.REPLAY or not 0 <= seq < MAX_SEQ:
            return
        self._until = now + REPLAY_S
        if self._unsure:
            if seq == self.next - 1 and xxhash.xxh3_128_digest(payload) == self._last:
                self._unsure = False
                return
            yield from self._restart()
            yield from self._ask(now)  # from the new incarnation's beginning
        elif seq >= self.next:
            if seq > self.next:
                yield from self._begin_at(seq)
            yield from self._apply(seq, payload, now)

    def replay_ended(self, now: float) -> Iterator[Told]:
        """No more of it will come. What is missing now is missing for good."""
        if self.state is not State.REPLAY:
            return
        self.state = State.LIVE
        held, self._held, self._held_bytes = self._held, deque(), 0
        if self._unsure:
            yield from self._restart()
        for seq, payload in held:
            if seq > self.next:
                yield from self._begin_at(seq)
            if seq == self.next:
                yield from self._apply(seq, payload, now)
            if self.state is not State.LIVE:
                return

    def disconnected(self) -> None:
        """The connection broke; who is there when it comes back may be another incarnation.

        What is held came from the one before: its place in what is replayed now cannot be told.
        """
        self._unsure = self.next > 0 or self.state is State.REPLAY  # the answer may be the one before's
        self._held.clear()
        self._held_bytes = 0

    def tick(self, now: float) -> Iterator[Told]:
        """Time has passed: a replay that does not come is given up, a quarantine ends."""
        if now < self._until:
            return
        if self.state is State.REPLAY:
            yield from self.replay_ended(now)
        elif self.state is State.QUARANTINE:
            self.state, self.why = State.LIVE, ""

    # ---- applying

    def _apply(self, seq: int, payload: bytes, now: float) -> Iterator[Told]:
        try:
            batch = self._decoder.batch(payload)
            if self._rank >= 0 and batch.rank not in (None, self._rank):
                raise Corrupt(f"rank {batch.rank} speaks in the place of rank {self._rank}")
        except Corrupt as error:
            self._counters.kv_malformed += 1
            yield from self._quarantine(str(error), now)
            return
        self.ignored += batch.ignored
        for event in batch.events:
            yield from self._mirror.apply(event)
        self._counters.kv_batches += 1
        self._last = xxhash.xxh3_128_digest(payload)
        self.next = seq + 1

    def _begin_at(self, seq: int) -> Iterator[Told]:
        """What the engine held before is not known: begins anew with this batch."""
        self.next = seq
        yield from self._mirror.empty()

    def _restart(self) -> Iterator[Told]:
        self._counters.kv_new_epochs += 1
        self._held.clear()
        self._held_bytes = 0
        self.state, self.next, self._unsure = State.LIVE, 0, False
        yield from self._mirror.restart()

    def _quarantine(self, why: str, now: float) -> Iterator[Told]:
        self._held.clear()
        self._held_bytes = 0
        self.state, self.why = State.QUARANTINE, why
        self.next, self._heard, self._unsure = 0, -1, False
        self._until = now + QUARANTINE_S
        yield from self._mirror.restart()

    # ---- waiting

    def _ask(self, now: float) -> Iterator[Told]:
        self.state = State.REPLAY
        self._until = now + REPLAY_S
        if self._can_replay:
            yield AskReplay(max(self.next - 1, 0) if self._unsure else self.next)
        else:
            yield from self.replay_ended(now)

    def _hold(self, seq: int, payload: bytes) -> None:
        """The oldest are let go; they are found missing later."""
        self._held.append((seq, payload))
        self._held_bytes += len(payload)
        while len(self._held) > MAX_HELD_BATCHES or self._held_bytes > MAX_HELD_BYTES:
            _, lost = self._held.popleft()
            self._held_bytes -= len(lost)
            self._counters.kv_held_dropped += 1

    def _in_pace(self, now: float) -> bool:
        if now - self._burst_at >= BURST_S:
            self._burst_at, self._burst = now, 0
        self._burst += 1
        return self._burst <= BURST
