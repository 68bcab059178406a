"""WatchKv over real gRPC: whoever follows it holds what the worker holds."""

import asyncio
import contextlib
import statistics
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto import limits
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import chain, digest_bytes, presence, root_hash
from warmfleet_worker import runner, watch, wire
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.gateway import ENDLESS, packed, stream, stub_of

SLOW = {"sim": {"timing": {"step_s": 0.005}}}


class Follower:
    """Keeps what a router keeps of a worker, and checks each digest."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.present: dict[tuple[int, bytes], int] = {}  # tier and hash -> depth
        self.seq = -1
        self.snapshots = 0
        self.bookings: list[int] = []
        self.load = pb.WorkerLoad()
        self.epoch = 0

    async def read(self) -> pb.WatchKvResponse:
        message: pb.WatchKvResponse = await asyncio.wait_for(self._call.read(), 60)
        self.load, self.epoch = message.load, message.epoch
        self.bookings += message.load.bookings
        if message.HasField("snapshot"):
            self._take_snapshot(message.snapshot)
        elif message.HasField("batch"):
            self._take_batch(message.batch)
        return message

    async def until(self, worker: Worker) -> None:
        """It knows all that the worker has published."""
        while self.seq != worker.presence.seq:
            await self.read()
        assert self.present == held(worker)

    def _take_snapshot(self, snapshot: pb.KvSnapshot) -> None:
        if snapshot.first:
            self.present.clear()
            self.snapshots += 1
        for run in snapshot.stored:
            self._store(run)
        if snapshot.last:
            self.seq = snapshot.seq
            self._check(snapshot.digest)

    def _take_batch(self, batch: pb.KvBatch) -> None:
        assert batch.seq == self.seq + 1
        for event in batch.events:
            if event.HasField("stored"):
                self._store(event.stored)
            elif event.HasField("removed"):
                for i in range(0, len(event.removed.hashes), 16):
                    del self.present[event.removed.tier, event.removed.hashes[i : i + 16]]
            else:
                self.present.clear()
        self.seq = batch.seq
        self._check(batch.digest)

    def _store(self, run: pb.Stored) -> None:
        for i in range(0, len(run.hashes), 16):
            key = run.tier, run.hashes[i : i + 16]
            assert key not in self.present
            self.present[key] = run.depth + i // 16

    def _check(self, digest: bytes) -> None:
        assert digest == digest_bytes(sum(presence(hashed, tier) for tier, hashed in self.present))


def held(worker: Worker) -> dict[tuple[int, bytes], int]:
    """What a worker has, tier by tier."""
    caches: list[Any] = [worker.scheduler.cache]
    found = {}
    if worker.below is not None:
        caches.append(worker.below.host.cache)
        if store := worker.below.store:
            found = {(int(pb.DISK), e.identity.hash): e.identity.depth for e in store.catalogue}
    for cache in caches:
        found |= {(int(cache.tier), node.hash): node.depth for node in cache._nodes.values()}
    return found


@asynccontextmanager
async def follow(stub: Any, epoch: int = 0, after_seq: int = 0) -> AsyncIterator[Follower]:
    call = stub.WatchKv(pb.WatchKvRequest(epoch=epoch, after_seq=after_seq))
    try:
        yield Follower(call)
    finally:
        call.cancel()


async def ask(stub: Any, gateway: str, *prompts: range) -> None:
    async with stream(stub, gateway) as opened:
        for handle, prompt in enumerate(prompts, 1):
            await opened.submit(handle, prompt, 20)
            await opened.end(handle)


async def test_events_lead_to_what_is_readable() -> None:
    async with sim_worker(total_blocks=24) as worker, stub_of(worker) as stub, follow(stub) as follower:
        await follower.read()
        assert (follower.snapshots, follower.seq, follower.present) == (1, 0, {})
        await ask(stub, "a", range(100), range(50, 170), range(60), range(300, 500), range(100))
        await follower.until(worker)
        assert worker.scheduler.cache.evictions
        prompt = packed(range(100))
        root = root_hash(worker.runner.engine.fingerprint, 16)
        for depth, hashed in enumerate(chain(root, prompt, 16)):
            assert follower.present[pb.DEVICE, hashed] == depth
        assert follower.snapshots == 1
        assert follower.epoch == worker.presence.epoch


async def test_quick_steps_share_a_batch_and_the_last_one_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_PACE_S", 60.0)
    async with sim_worker() as worker, stub_of(worker) as stub, follow(stub) as follower:
        await follower.until(worker)
        await ask(stub, "gateway", range(20), range(100, 500))
        await follower.until(worker)
        assert worker.presence.seq <= 4
        assert len(worker.presence) == len(worker.scheduler.cache._nodes) > 20


async def test_an_answer_is_announced_before_it_ends_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has had an answer asks again at once: others that still run hold nothing back."""
    monkeypatch.setattr(runner, "_PACE_S", 60.0)
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub, "g") as gateway:
        await gateway.submit(1, range(1000, 1050), ENDLESS)
        await gateway.until(1, 5)
        await gateway.submit(2, range(100), 20)
        await gateway.end(2)
        root = root_hash(worker.runner.engine.fingerprint, 16)
        announced = {hashed for run in worker.presence.snapshot().stored for hashed in run.hashes}
        assert announced >= set(chain(root, packed(range(100)), 16))
        assert not worker.scheduler.idle


async def test_replay_and_snapshot_lead_to_the_same() -> None:
    async with sim_worker(total_blocks=40) as worker, stub_of(worker) as stub:
        async with follow(stub) as follower:
            await ask(stub, "a", range(100))
            await follower.until(worker)
        await ask(stub, "b", range(200, 400), range(700, 900), range(50))
        async with follow(stub, worker.presence.epoch, follower.seq) as again:
            again.seq, again.present = follower.seq, follower.present
            await again.until(worker)
            assert again.snapshots == 0
        async with follow(stub) as fresh:
            await fresh.until(worker)
            assert fresh.snapshots == 1
        assert fresh.present == again.present


@pytest.mark.parametrize(("epoch", "after_seq"), [(1, 0), (1, 1), (None, 2**40), (0, 0)])
async def test_unknown_position_gets_a_snapshot(epoch: int | None, after_seq: int) -> None:
    async with sim_worker() as worker, stub_of(worker) as stub:
        await ask(stub, "a", range(100))
        async with follow(stub, worker.presence.epoch if epoch is None else epoch, after_seq) as follower:
            await follower.until(worker)
            assert follower.snapshots == 1


async def test_snapshot_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HASHES_PER_MESSAGE", 5)
    async with sim_worker() as worker, stub_of(worker) as stub:
        await ask(stub, "a", range(100), range(300, 450))
        async with follow(stub) as follower:
            first = await follower.read()
            assert (first.snapshot.first, first.snapshot.last) == (True, False)
            assert sum(len(run.hashes) for run in first.snapshot.stored) == 5 * limits.HASH_BYTES
            await follower.until(worker)
            assert follower.snapshots == 1


async def test_router_that_is_too_far_behind_gets_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCH_BACKLOG_MESSAGES", 3)
    async with sim_worker() as worker, stub_of(worker) as stub:
        await ask(stub, "a", *(range(i, i + 50) for i in range(0, 500, 100)))
        async with follow(stub, worker.presence.epoch, 1) as follower:
            await follower.until(worker)
            assert follower.snapshots == 1
        async with follow(stub, worker.presence.epoch, worker.presence.seq - 3) as follower:
            message = await follower._call.read()
            assert message.batch.seq == worker.presence.seq - 2


async def test_silence_is_short_and_load_is_told() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, follow(stub) as follower:
        await follower.read()
        loop = asyncio.get_running_loop()
        silences = []
        for _ in range(5):
            began = loop.time()
            await follower.read()
            silences.append(loop.time() - began)
        assert statistics.median(silences) < 2 * limits.HEARTBEAT_S
        await ask(stub, "a", range(100), range(100))
        await follower.until(worker)
        while follower.load.completion_tokens_total < 40 or follower.load.running:
            await follower.read()
        load = follower.load
        assert (load.prompt_tokens_total, load.cached_tokens_total) == (200, 96)
        assert (load.completion_tokens_total, load.requests_total) == (40, 2)
        work = load.work
        assert (work.prompt_steps, work.prompt_tokens) == (2, 100 + 4)
        assert work.prompt_pairs == 100 * 50 + 4 * (96 + 2)
        assert (work.decode_sequences, work.decode_context) == (2 * 19, 2 * sum(range(100, 119)))
        assert 19 <= work.decode_steps <= 2 * 19
        assert load.free_blocks + load.cached_blocks == worker.scheduler.cache.pool.total
        assert load.cached_blocks == len(follower.present)


async def test_bookings_are_named_once_a_stream() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await gateway.submit(1, range(50), ENDLESS, booking=101)
        await gateway.until(1, 1)
        async with follow(stub) as follower:
            await follower.read()
            assert follower.bookings == [101]
            await gateway.submit(2, range(50), ENDLESS, booking=102)
            await gateway.submit(3, range(50), 1)
            while follower.load.requests_total < 3:
                await follower.read()
            for _ in range(3):
                await follower.read()
            assert follower.bookings == [101, 102]
        await gateway.send(cancel=pb.Cancel(handle=1))
        await gateway.end(1)
        async with follow(stub, worker.presence.epoch, worker.presence.seq) as follower:
            await follower.read()
            assert follower.bookings == [102]
            assert follower.snapshots == 0


async def test_watchers_leave_nothing_behind() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub:
        for _ in range(3):
            async with follow(stub) as follower:
                await follower.read()
        async with asyncio.timeout(60), stream(stub) as gateway:
            handle = 0
            while worker.runner.listeners:
                handle += 1
                await gateway.submit(handle, [1], 1)
                await gateway.end(handle)


async def test_later_snapshot_names_all_bookings_again() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await gateway.submit(1, range(50), ENDLESS, booking=101)
        await gateway.until(1, 1)
        async with contextlib.aclosing(watch.Watch(worker.runner).messages(pb.WatchKvRequest())) as messages:
            assert list((await anext(messages)).load.bookings) == [101]
            worker.presence._ring = deque(maxlen=1)
            for handle, booking in ((2, 102), (3, 0), (4, 0)):
                await gateway.submit(handle, range(100 * handle, 100 * handle + 50), 1, booking=booking)
                await gateway.end(handle)
            message = await anext(messages)
            assert message.snapshot.last
            assert list(message.load.bookings) == [101]  # 102 has come and gone


async def test_bookings_that_nobody_reads_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that has stopped keeps its stream open. When it reads on it hears of those that live."""
    monkeypatch.setattr(watch, "_MOST_UNNAMED", 3)
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        follower = watch.Watch(worker.runner)
        async with contextlib.aclosing(follower.messages(pb.WatchKvRequest())) as messages:
            assert (await anext(messages)).snapshot.last
            for handle in range(1, 9):
                await gateway.submit(handle, [handle], 1, booking=100 + handle)
                await gateway.end(handle)
            assert follower._unnamed == [101, 102, 103]
            await gateway.submit(9, [9], ENDLESS, booking=109)
            await gateway.until(9, 1)
            message = await anext(messages)
            assert message.snapshot.last
            assert list(message.load.bookings) == [109]
            await gateway.submit(10, [10], 1, booking=110)
            await gateway.end(10)
            assert 110 in (await anext(messages)).load.bookings


async def test_each_tier_is_told(tmp_path: Path) -> None:
    """From the first snapshot on, also what a disk held before the worker was started."""
    timing = {"prefill_token_s": 0.001, "step_s": 0.0, "prefill_pair_s": 0.0}
    settings: dict[str, Any] = {
        "sim": {"timing": timing}, "total_blocks": 12, "host_bytes": 20 * 128,
        "disk_path": str(tmp_path), "disk_bytes": 1 << 24,
    }  # fmt: skip
    for start in (0, 1):
        async with sim_worker(**settings) as worker, stub_of(worker) as stub, follow(stub) as follower:
            await follower.read()
            tiers = {tier for tier, _ in follower.present}
            assert tiers == ({pb.DISK} if start else set())
            assert worker.below is not None
            await ask(stub, "g", range(100), range(200, 340), range(100), range(400, 500))
            await worker.runner.drain(5)
            await worker.below.settle(5)
            await follower.until(worker)
            assert {tier for tier, _ in follower.present} == {pb.DEVICE, pb.HOST, pb.DISK}
            assert worker.scheduler.totals.brought
