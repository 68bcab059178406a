"""A sim worker with tiers below its device: what the device lost comes back, what is wrong does not."""

import errno
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from warmfleet_worker import pace
from warmfleet_worker.events import Tier
from warmfleet_worker.pace import Pace
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.below import Below
from warmfleet_worker.tiers.carriers import READERS
from warmfleet_worker.tiers.segment import Segment
from warmfleet_worker.tiers.writeback import Spill
from warmfleet_worker.worker import Worker

from tests.process.exchange import ONE_STEP
from tests.process.fleet import sim_worker
from tests.process.gateway import Stream, expected, stream, stub_of

# Computing a token takes two milliseconds: whatever is brought is brought sooner.
TIMING = {"step_s": 0.0, "prefill_token_s": 0.002, "prefill_pair_s": 0.0, "sequence_s": 0.0, "context_s": 0.0}
HOST = {"sim": {"timing": TIMING}, "total_blocks": 40, "host_bytes": 500 * 128, "chunk_tokens": ONE_STEP}
QUICK = {"sim": {"timing": {**TIMING, "prefill_token_s": 0.0001}}}


def disk(folder: Path, **other: Any) -> dict[str, Any]:
    return {**HOST, "disk_path": str(folder), "disk_bytes": 64 << 20, **other}


def prompt(number: int, blocks: int = 20) -> list[int]:
    return [number * 1000 + i for i in range(blocks * 16)] + [7]


def below(worker: Worker) -> Below:
    assert worker.below is not None
    return worker.below


async def settled(worker: Worker) -> None:
    """Everything that can be written back has been."""
    await worker.runner.drain(60)
    worker.scheduler.draining = False
    worker.runner.publish()
    await below(worker).settle(60)
    assert below(worker).settled


async def ask(gateway: Stream, worker: Worker, handle: int, tokens: Sequence[int]) -> Any:
    """One request, its text checked against the oracle; what it said when it started."""
    await gateway.submit(handle, tokens, 4)
    assert await gateway.finish(handle) == expected(worker, tokens, 4)
    return gateway.started[handle]


async def displace(gateway: Stream, worker: Worker, handle: int, number: int) -> None:
    """Two other prompts as long as the pool."""
    for i in range(2):
        await ask(gateway, worker, handle + i, prompt(number + i, 35))


def check_presence(worker: Worker) -> None:
    """The log says what there is, tier by tier."""
    told = worker.presence._present.keys()
    assert {h for tier, h in told if tier == Tier.DEVICE} == set(worker.scheduler.cache._nodes)
    assert {h for tier, h in told if tier == Tier.HOST} == set(below(worker).host.cache._nodes)
    if store := below(worker).store:
        assert {h for tier, h in told if tier == Tier.DISK} == {e.identity.hash for e in store.catalogue}
    below(worker).host.cache.check_integrity()
    assert below(worker).host.cache.pool.pinned == 0
    assert worker.scheduler.cache.pool.pinned == 0


async def test_what_the_device_lost_comes_back_from_the_host() -> None:
    async with sim_worker(**HOST) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        first = await ask(gateway, worker, 1, prompt(1))
        assert (first.cached_tokens, first.host_tokens) == (0, 0)
        await displace(gateway, worker, 2, 5)
        again = await ask(gateway, worker, 4, prompt(1))
        assert (again.cached_tokens, again.host_tokens, again.disk_tokens) == (320, 320, 0)
        assert again.loaded_bytes == 20 * 128
        assert 0 < again.load_s <= again.queue_s
        assert again.queue_s + again.prefill_s < first.prefill_s
        await settled(worker)
        check_presence(worker)
        url = f"http://{worker.http_address}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            text = await response.text()
    assert 'warmfleet_worker_brought_tokens_total{source="host"} 320.0' in text
    assert 'warmfleet_worker_fetched_blocks_total{source="host"} 20.0' in text
    assert 'warmfleet_worker_tier_blocks{tier="host"} 90.0' in text
    assert 'warmfleet_worker_tier_written_blocks_total{tier="host"} 90.0' in text


async def test_the_disk_is_told_and_served_after_a_restart(tmp_path: Path) -> None:
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        cold = await ask(gateway, worker, 1, prompt(1))
        await settled(worker)
        check_presence(worker)
        assert below(worker).spilled == 20
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        assert len(worker.presence) == 20
        check_presence(worker)
        warm = await ask(gateway, worker, 1, prompt(1))
        assert (warm.cached_tokens, warm.host_tokens, warm.disk_tokens) == (320, 0, 320)
        assert warm.queue_s + warm.prefill_s < cold.prefill_s
        await settled(worker)
        check_presence(worker)


async def test_a_small_host_tier_keeps_what_is_used(tmp_path: Path) -> None:
    """Its eviction goes leaf first; the disk has the rest."""
    settings = disk(tmp_path, host_bytes=50 * 128)
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for number in range(6):
            await ask(gateway, worker, number + 1, prompt(number))
            await settled(worker)
        check_presence(worker)
        assert below(worker).host.cache.evictions > 0
        again = await ask(gateway, worker, 9, prompt(0))
        assert again.disk_tokens == 320
        await settled(worker)
        check_presence(worker)


async def test_many_at_once_on_little_memory(tmp_path: Path) -> None:
    """Everything is evicted all the time, on the device and on the host; texts stay the oracle's."""
    settings = disk(tmp_path, host_bytes=60 * 128, **QUICK)
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        asked = {h: prompt(h % 7, 4 + h % 9) for h in range(1, 80)}
        for handle, tokens in asked.items():
            await gateway.submit(handle, tokens, 6)
        for handle, tokens in asked.items():
            assert await gateway.finish(handle) == expected(worker, tokens, 6)
        await settled(worker)
        check_presence(worker)
        totals = worker.scheduler.fetching.totals
        assert totals.arrived[Source.HOST] + totals.arrived[Source.DISK] > 0


async def test_wrong_copies_in_the_hosts_memory_are_computed_again() -> None:
    async with sim_worker(**{**HOST, **QUICK}) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        worker.scheduler.fetching.pace = Patient()
        for number in range(20):
            await ask(gateway, worker, number + 1, prompt(number))
        await settled(worker)
        host, memory = below(worker).host, below(worker)._memory
        for node in host.cache._nodes.values():
            memory[node.block * 128 + 5] ^= 4
        for number in range(17):  # the others are on the device still
            started = await ask(gateway, worker, 100 + number, prompt(number))
            assert started.cached_tokens == 0
        assert host.corrupt == 17  # one a prefix: what comes after it is not read
        await settled(worker)
        check_presence(worker)


class Patient(Pace):
    """Tries every prefix and waits for it, however slow the machine is."""

    def computed(self, tokens: int, pairs: float, seconds: float) -> None:
        """Learns nothing: where the price of computing is not known, nobody computes what is on its way."""

    def worth(self, source: Source, blocks: int, tokens: int, now: float) -> bool:
        return True

    def patience_s(self, source: Source, blocks: int, tokens: int) -> float:
        return 60.0


def spoil_all(folder: Path) -> None:
    (path,) = folder.glob("*.wfkv")
    segment = Segment.open(path, writable=False)
    with path.open("r+b") as file:
        for place in segment.places:
            file.seek(place.offset + segment.record_bytes - 5)
            file.write(b"wrong")


async def test_wrong_blocks_on_disk_are_computed_again(tmp_path: Path) -> None:
    settings = disk(tmp_path, **QUICK)
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for number in range(20):
            await ask(gateway, worker, number + 1, prompt(number))
            await settled(worker)  # or the next prompts take its blocks before they are copied
        assert below(worker).spilled == 400
    spoil_all(tmp_path)
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        worker.scheduler.fetching.pace = Patient()
        for number in range(20):
            started = await ask(gateway, worker, number + 1, prompt(number))
            assert started.cached_tokens == 0
        store = below(worker).store
        assert store is not None
        assert store.corrupt == 20 * READERS  # each found the first of its share wrong
        await settled(worker)
        check_presence(worker)
        assert len(store) == 400  # those that were found wrong are right again
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        assert (await ask(gateway, worker, 1, prompt(3))).disk_tokens == 16  # the next is found wrong now


class Trouble:
    """Stands in for the system's calls, as a disk in trouble answers them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.delay_s = 0.0
        for name in ("preadv", "pwritev"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, call: Any) -> Any:
        def troubled(*arguments: Any) -> Any:
            time.sleep(self.delay_s)
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
            return call(*arguments)

        return troubled


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_requests_go_on_without_the_disk(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await ask(gateway, worker, 1, prompt(1, 10))
        await settled(worker)
    trouble = Trouble(monkeypatch)
    monkeypatch.setattr(pace, "_REST_S", 600.0)
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        trouble.error = error
        for number in range(6):
            started = await ask(gateway, worker, number + 1, prompt(number, 10))
            assert started.disk_tokens == 0
            await settled(worker)
        counts = below(worker).complaints.counts
        assert 1 <= counts["read"] <= READERS  # then it rests
        assert counts["write"] >= 1
        assert below(worker).unspilled >= 50
    logged = [record for record in caplog.records if record.message.startswith("disk tier")]
    assert len(logged) == 2  # one for reading, one for writing


async def test_a_slot_taken_anew_before_the_disk_has_it_is_not_written(tmp_path: Path) -> None:
    """A spill pins nothing: its sum tells what it found."""
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        held: list[Spill] = []
        below(worker)._spill = held.extend  # type: ignore[method-assign]
        await ask(gateway, worker, 1, prompt(1, 10))
        await settled(worker)
        assert len(held) == 10
        below(worker)._memory[held[4].slot * 128] ^= 1
        del below(worker)._spill
        below(worker)._spill(held)
        await settled(worker)
        store = below(worker).store
        assert store is not None
        assert (len(store), below(worker).spilled, below(worker).unspilled) == (9, 9, 1)
        assert store.catalogue.get(held[4].identity.hash) is None


async def test_deleted_files_are_a_miss(tmp_path: Path) -> None:
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await ask(gateway, worker, 1, prompt(1, 10))
        await settled(worker)
        for path in list_files(tmp_path):
            path.unlink()
        await displace(gateway, worker, 2, 5)
        await ask(gateway, worker, 4, prompt(1, 10))
        await settled(worker)
        check_presence(worker)
    for path in list_files(tmp_path):
        path.unlink()
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        assert len(worker.presence) == 0
        assert (await ask(gateway, worker, 1, prompt(1, 10))).cached_tokens == 0
        await settled(worker)
        assert below(worker).spilled == 10


def list_files(folder: Path) -> list[Path]:
    return list(folder.glob("*.wfkv"))


async def test_a_slow_disk_does_not_make_answers_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call takes three seconds, computing one of these prompts .064 s: the first one finds out."""
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for number in range(20):
            await ask(gateway, worker, number + 1, prompt(number, 2))
        await settled(worker)
    trouble = Trouble(monkeypatch)
    async with sim_worker(**disk(tmp_path)) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        trouble.delay_s = 3.0
        worker.scheduler.fetching.pace.token_s = TIMING["prefill_token_s"]
        for number in range(20):
            await ask(gateway, worker, number + 1, prompt(number, 2))
        slow = [started.queue_s + started.prefill_s for started in gateway.started.values()]
        assert statistics.median(slow) < 1.0
        assert max(slow) < trouble.delay_s  # the one that found out
        trouble.delay_s = 0.0
