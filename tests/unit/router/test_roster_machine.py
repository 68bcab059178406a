"""Workers that come, break off, begin anew and take each other's place, in any order: whenever all has been
heard of one, the index holds what it holds, and what ends leaves nothing behind in the books."""

from collections.abc import Callable
from itertools import count
from random import Random

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt, Rejected
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_proto.limits import HASH_BYTES, KEY_BYTES
from warmfleet_router.core import RouterCore
from warmfleet_router.index.cursor import WatchAgain
from warmfleet_router.routing import Routing

from tests.unit.router.fleet_of import BLOCK, ask, tokens

ADDRESSES = ("x:1", "y:1", "z:1")
NAMES = ("a", "b", "c", "d")
KINDS = (b"f" * 32, b"g" * 32)
TIERS = (pb.DEVICE, pb.HOST)
BLOCKS = [bytes([n]) * HASH_BYTES for n in range(12)]
PART = 3  # runs of a snapshot's message


class Process:
    """One worker, as its Status and its presence log show it."""

    def __init__(self, random: Random, epochs: "count[int]") -> None:
        self._random, self._epochs = random, epochs
        self.start()

    def start(self) -> None:
        self.epoch = next(self._epochs)
        self.name, self.kind = self._random.choice(NAMES), self._random.choice(KINDS)
        self.digest = 0
        self.present: set[tuple[bytes, pb.Tier.ValueType]] = set()
        self.log: list[pb.KvBatch] = []

    def status(self) -> pb.StatusResponse:
        return pb.StatusResponse(
            worker=self.name,
            epoch=self.epoch,
            model="m",
            model_fingerprint=self.kind,
            block_size=BLOCK,
            total_blocks=1000,
            max_context=100_000,
        )

    def change(self) -> pb.WatchKvResponse:
        events = []
        for _ in range(self._random.randrange(6)):
            block = self._random.choice(BLOCKS), self._random.choice(TIERS)
            if block in self.present:
                self.present.remove(block)
                self.digest -= presence(*block)
                events.append(pb.KvEvent(removed=pb.Removed(tier=block[1], hashes=block[0])))
            else:
                self.present.add(block)
                self.digest += presence(*block)
                events.append(pb.KvEvent(stored=pb.Stored(tier=block[1], hashes=block[0])))
        self.log.append(pb.KvBatch(seq=len(self.log) + 1, digest=digest_bytes(self.digest), events=events))
        return pb.WatchKvResponse(epoch=self.epoch, batch=self.log[-1])

    def watched(self, after: WatchAgain) -> list[pb.WatchKvResponse]:
        if after.epoch == self.epoch:
            return [
                pb.WatchKvResponse(epoch=self.epoch, batch=batch) for batch in self.log[after.after_seq :]
            ]
        stored = [pb.Stored(tier=tier, hashes=block) for block, tier in sorted(self.present)]
        parts = [
            pb.KvSnapshot(seq=len(self.log), digest=digest_bytes(self.digest), stored=stored[at : at + PART])
            for at in range(0, len(stored) or 1, PART)
        ]
        parts[0].first = parts[-1].last = True
        return [pb.WatchKvResponse(epoch=self.epoch, snapshot=part) for part in parts]


class Site:
    """Behind each address are two processes in turn. A stream is one of them, and what it has yet to say."""

    def __init__(self, seed: int) -> None:
        self.random, self.now = Random(seed), 0.0
        self.core = RouterCore(Routing(), seed)
        self.roster = self.core.roster
        epochs = count(1)
        self.behind = {each: [Process(self.random, epochs) for _ in range(2)] for each in ADDRESSES}
        self.streams: dict[str, tuple[Process, list[pb.WatchKvResponse]]] = {}
        self.bookings: list[int] = []

    def step(self) -> None:
        self.now += 0.05
        address = self.random.choice(ADDRESSES)
        moves: dict[Callable[[str], None], int] = {
            self.hear: 35,
            self.change: 20,
            self.lose: 10,
            self.replace: 10,
            self.restart: 3,
            self.cancel: 2,
            self.remove: 2,
            self.sweep: 6,
            self.place: 6,
            self.end: 6,
        }
        if address not in self.roster.fleet.workers:
            self.roster.add(address)
        (move,) = self.random.choices([*moves], [*moves.values()])
        move(address)
        self.core.tick(self.now)

    # ---- what may happen

    def hear(self, address: str) -> None:
        if address not in self.streams:
            self.join(address)
            return
        process, messages = self.streams[address]
        if not messages:
            return
        try:
            asks = [each for each in self.roster.ingest(address, messages.pop(0), self.now) if each]
        except Corrupt:  # its name is another one's by now
            self.lose(address)
            return
        if asks:
            self.streams[address] = process, process.watched(self.roster.cursor(address).position())

    def join(self, address: str) -> None:
        process = self.behind[address][0]
        try:
            self.roster.joined(address, process.status(), self.now)
        except Rejected:
            self.lose(address)
        else:
            self.streams[address] = process, process.watched(self.roster.cursor(address).position())

    def change(self, address: str) -> None:
        process = self.random.choice(self.behind[address])
        message = process.change()
        if address in self.streams and self.streams[address][0] is process:
            self.streams[address][1].append(message)

    def lose(self, address: str) -> None:
        self.streams.pop(address, None)
        self.roster.broken(address, self.now)

    def replace(self, address: str) -> None:
        self.lose(address)
        self.behind[address].reverse()

    def restart(self, address: str) -> None:
        process = self.random.choice(self.behind[address])
        if address in self.streams and self.streams[address][0] is process:
            self.lose(address)
        process.start()

    def cancel(self, address: str) -> None:
        """In the middle of a message."""
        if address in self.streams and self.streams[address][1]:
            taken = self.roster.ingest(address, self.streams[address][1].pop(0), self.now)
            try:
                for _ in range(self.random.randrange(3)):
                    next(taken, None)
            except Corrupt:
                pass
            taken.close()  # type: ignore[attr-defined]
            self.lose(address)

    def remove(self, address: str) -> None:
        self.lose(address)
        self.roster.remove(address, self.now)

    def sweep(self, _: str) -> None:
        self.roster.sweep(self.random.randrange(1, 8))

    def place(self, _: str) -> None:
        prompt = tokens((0, BLOCK * self.random.randrange(1, 40)))
        try:
            self.bookings.append(self.core.route(ask(prompt), self.now).booking)
        except Rejected:
            return

    def end(self, _: str) -> None:
        if self.bookings:
            booking = self.bookings.pop(self.random.randrange(len(self.bookings)))
            self.core.progress(rpb.ProgressRequest(booking=booking, ttft_s=0.1, prefill_s=0.1), self.now)
            self.core.finish(rpb.FinishRequest(booking=booking, outcome=rpb.FinishRequest.OK), self.now)

    # ---- what must be

    def check(self) -> None:
        for address, (process, messages) in self.streams.items():
            worker = self.roster.fleet.workers[address]
            group = self.roster.group_of(worker)
            if messages or group is None or not self.roster.cursor(address).live:
                continue
            held = {block for block, _ in process.present}
            assert group.index.held(worker.slot) == len(held)
            for block in held:
                assert group.index.leading(block[:KEY_BYTES], group.loads)[0][worker.slot] == 1

    def wind_up(self) -> None:
        while self.bookings:
            self.end("")
        self.core.tick(self.now + 60.0)
        assert not any(len(group.prefixes) for group in self.roster.groups.values())
        for worker in self.roster.fleet.workers.values():
            booked = worker.booked
            assert (booked.alive, booked.slots, booked.coming.prompts, len(booked.line)) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(120))
def test_the_index_holds_what_those_hold_of_whom_all_has_been_heard(seed: int) -> None:
    site = Site(seed)
    for _ in range(400):
        site.step()
        site.check()
    site.wind_up()
