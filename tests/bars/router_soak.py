"""Bar: a million requests through the router's core in virtual time; memory stays flat.

Conversations come, grow and end; workers announce what they store and evict, restart, leave and come
under other names; gateways come and vanish with their bookings; some requests are nonsense, some are
dropped, some never end. A slice is one call into the core, one step of taking in events, or one turn of the
garbage collector, which runs as it does in the router program.
"""

import os
import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_router.core import RouterCore
from warmfleet_router.garbage import Collector
from warmfleet_router.index.cursor import keys_of
from warmfleet_router.routing import Routing

from tests.bars.rows import Row

REQUESTS, WORKERS, A_SECOND = 1_000_000, 8, 400  # A_SECOND: of virtual time
CAPACITY = 3000  # blocks of a worker
CONVERSATIONS, TURNS, FIRST, MORE = 500, 12, 24, 6  # blocks of a first turn and of each one more
FLYING = 40  # requests that have not ended yet
SHORT, RUNS = 20_000, 3  # requests of the equal runs that time the slices
SAMPLES, WARM_UP = 50, 0.3
MB = 1 << 20

T = TypeVar("T")


class Slices:
    """Seconds of thread time of each."""

    def __init__(self) -> None:
        self.taken = array("d")
        self.over = 0  # a millisecond
        self.keep = True

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        start = time.thread_time()
        try:
            return function(*arguments)
        finally:
            took = time.thread_time() - start
            self.over += took > 1e-3
            if self.keep:
                self.taken.append(took)


class Worker:
    """Holds the latest CAPACITY blocks that it computed, in a ring, and announces every change."""

    def __init__(self, core: RouterCore, name: str, slices: Slices) -> None:
        self.core, self.name, self.slices = core, name, slices
        self.address = f"{name}:1"
        self.epoch = 0

    def join(self, now: float) -> None:
        self.epoch, self.seq, self.digest = self.epoch + 1, 0, 0
        self.ring, self.at = bytearray(16 * CAPACITY), 0
        self.held: dict[bytes, int] = {}
        status = pb.StatusResponse(worker=self.name, epoch=self.epoch, model="m", model_fingerprint=b"f")
        status.block_size, status.max_context, status.max_running = 16, 1 << 20, 256
        status.total_blocks = CAPACITY
        self.core.roster.add(self.address)
        self.slices.call(self.core.roster.joined, self.address, status, now)
        part = pb.KvSnapshot(digest=digest_bytes(0), first=True, last=True)
        self.say(pb.WatchKvResponse(epoch=self.epoch, snapshot=part), now)

    def say(self, message: pb.WatchKvResponse, now: float) -> None:
        steps = self.core.roster.ingest(self.address, message, now)
        while self.slices.call(next, steps, self) is not self:
            pass

    def report(self, now: float, booked: list[int]) -> None:
        load = pb.WorkerLoad(running=len(booked) % 9, context_tokens=300, bookings=booked)
        load.cached_blocks = CAPACITY  # nothing that it holds is in use: nobody waits for memory
        self.say(pb.WatchKvResponse(epoch=self.epoch, load=load), now)

    def compute(self, chain: bytes, now: float) -> None:
        blocks = [chain[i : i + 16] for i in range(0, len(chain), 16)]
        new, gone = [block for block in blocks if block not in self.held], []
        for block in new:
            oldest = bytes(self.ring[self.at : self.at + 16])
            if self.held.pop(oldest, None) is not None:
                gone.append(oldest)
            self.held[block] = self.at
            self.ring[self.at : self.at + 16] = block
            self.at = (self.at + 16) % len(self.ring)
        events = [
            pb.KvEvent(stored=pb.Stored(tier=pb.DEVICE, depth=len(blocks) - len(new), hashes=b"".join(new)))
        ]
        if gone:
            events.append(pb.KvEvent(removed=pb.Removed(tier=pb.DEVICE, hashes=b"".join(gone))))
        self.digest += sum(presence(b, pb.DEVICE) for b in new) - sum(presence(b, pb.DEVICE) for b in gone)
        self.seq += 1
        batch = pb.KvBatch(seq=self.seq, digest=digest_bytes(self.digest), events=events)
        self.say(pb.WatchKvResponse(epoch=self.epoch, batch=batch), now)


class Soak:
    """Iterating runs it, a request at a time."""

    def __init__(self, seed: int, collector: Collector) -> None:
        self.collector = collector
        self.core, self.slices, self.chance = RouterCore(Routing(), seed), Slices(), random.Random(seed)
        self.workers: dict[str, Worker] = {}
        self.flying: deque[tuple[int, str]] = deque()
        self.conversations = [self._conversation() for _ in range(CONVERSATIONS)]
        self.placed = 0

    def __iter__(self) -> Iterator[None]:
        for n in range(WORKERS):
            self._come(f"w{n}", 0.0)
        for number in range(10 * REQUESTS):
            now = 1.0 + number / A_SECOND
            if number % (A_SECOND // 10) == 0:
                self._tick(now)
            if number % A_SECOND == 0:
                self.slices.call(self.collector.turn, now, time.process_time())
            if number % 7001 == 7000:
                self.chance.choice(list(self.workers.values())).join(now)  # restarted
            if number % 20_011 == 20_010:
                self._replace(f"w{number}", now)
            self._request(number, now)
            yield

    def _come(self, name: str, now: float) -> None:
        worker = Worker(self.core, name, self.slices)
        worker.join(now)
        self.workers[worker.address] = worker

    def _replace(self, name: str, now: float) -> None:
        leaver = self.chance.choice(list(self.workers))
        del self.workers[leaver]
        self.slices.call(self.core.roster.remove, leaver, now)
        self._come(name, now)

    def _tick(self, now: float) -> None:
        self.slices.call(self.core.tick, now)
        self.slices.call(self.core.roster.sweep, 1024)
        for worker in self.workers.values():
            worker.report(now, [b for b, address in self.flying if address == worker.address])

    def _conversation(self) -> bytes:
        return self.chance.randbytes(16 * FIRST)

    def _request(self, number: int, now: float) -> None:
        which = self.chance.randrange(CONVERSATIONS)
        chain = self.conversations[which] + self.chance.randbytes(16 * MORE)
        ended = len(chain) > 16 * (FIRST + MORE * TURNS)
        self.conversations[which] = self._conversation() if ended else chain
        asked = rpb.RouteRequest(
            request_id=f"r{number}",
            gateway_id=f"g{number // 5000}",
            tenant=f"t{number % 5000}",
            model="m" if number % 211 else "no such model",
            keys=keys_of(chain),
            prompt_tokens=len(chain) + 3,
            max_tokens=64,
        )
        try:
            placement = self.slices.call(self.core.route, asked, now)
        except (BadRequest, Rejected):
            return
        self.placed += 1
        if number % 307 == 0:
            self.slices.call(self.core.explain, asked, now)
        if number % 101 == 0:
            return  # its gateway never says how it ended
        self.workers[placement.address].compute(chain, now)
        self.flying.append((placement.booking, placement.address))
        first = rpb.ProgressRequest(booking=placement.booking, prefill_s=0.01, ttft_s=0.02, cached_tokens=64)
        self.slices.call(self.core.progress, first, now)
        if len(self.flying) > FLYING:
            booking, _ = self.flying.popleft()
            outcome = rpb.FinishRequest.OK if number % 503 else rpb.FinishRequest.DROPPED
            end = rpb.FinishRequest(booking=booking, outcome=outcome, completion_tokens=30)
            self.slices.call(self.core.finish, end, now)


def main() -> list[Row]:
    timed = []
    for _ in range(RUNS):
        collector = Collector(1.0, time.process_time())
        short = Soak(1, collector)
        for _ in islice(short, SHORT):
            pass
        timed.append(short.slices.taken)
        collector.close()
    least = [min(times) for times in zip(*timed, strict=True)]
    worst = f"{max(least) * 1e3:.2f} ms of {len(least)} (at worst {max(map(max, timed)) * 1e3:.2f} ms)"
    soak, grown = million()
    totals = soak.core.totals(1e9)
    slices = f"{soak.slices.over} over 1 ms, the machine's own pauses included"
    return [
        Row(
            "3.5", f"longest slice, least of {RUNS} equal runs of {SHORT}", worst, "< 1 ms", max(least) < 1e-3
        ),
        Row("3.5", f"memory growth a 100k of {REQUESTS} requests", f"{grown:.2f} MB", "< 1 MB", grown < 1.0),
        Row(
            "3.5",
            "placed, expired, still booked",
            f"{soak.placed}, {soak.core.counters.expired}, {totals.bookings}",
        ),
        Row("3.5", "slices of the long run", slices),
    ]


def million() -> tuple[Soak, float]:
    """The long run, and the slope of its resident memory after the warm-up: MB a 100k requests."""
    soak = Soak(2, Collector(1.0, time.process_time()))
    samples, start = [], time.perf_counter()
    soak.slices.keep = False
    requests = iter(soak)
    for sample in range(SAMPLES):
        for _ in islice(requests, REQUESTS // SAMPLES):
            pass
        samples.append(resident_mb())
        done, took = (sample + 1) / SAMPLES, time.perf_counter() - start
        print(f"   {done:4.0%} {took:4.0f} s {samples[-1]:.1f} MB", flush=True)
    return soak, slope(samples[int(WARM_UP * SAMPLES) :]) / (REQUESTS / SAMPLES) * 100_000


def slope(values: list[float]) -> float:
    """Of the least squares line, a step."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    rise = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return rise / sum((i - middle) ** 2 for i in range(len(values)))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


if __name__ == "__main__":
    print(*main(), sep="\n")
