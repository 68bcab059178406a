"""Blocks that the source has in its lower tiers only: lent, pulled and proven like those on its device."""

from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.hashing import keys
from warmfleet_proto.limits import LEASE_TTL_S
from warmfleet_proto.worker_pb2 import BringRequest, Ending
from warmfleet_worker.source import Source
from warmfleet_worker.transfer.pull import Failure

from tests.process.exchange import ONE_STEP, End, giving, grant_of, hashes_of, pair, pull_of, root_of
from tests.process.gateway import expected, stream, stub_of
from tests.process.test_bring import bring
from tests.process.test_pull import at_rest, lease, until
from tests.process.test_tiers import below, prompt, settled

BLOCKS = 20  # of each prompt
SMALL: dict[str, Any] = {"total_blocks": 64, "host_bytes": 500 * 128, "chunk_tokens": ONE_STEP}
SIZE = 128


async def made_on(end: End, number: int, handle: int, blocks: int = BLOCKS) -> None:
    await end.gateway.submit(handle, prompt(number, blocks), 1)
    ending = await end.gateway.end(handle)
    assert ending.reason == Ending.LENGTH, ending


async def displaced(end: End, handle: int) -> None:
    """Nothing of what was made before is on the device any more; what is below has settled."""
    await settled(end.worker)
    for i in range(2):
        await made_on(end, 25 + i, handle + i, 55)
    await settled(end.worker)


async def pulled(a: End, b: End, number: int, handle: int) -> Any:
    """What the target says of an answer that was right."""
    tokens = prompt(number)
    await b.gateway.submit(handle, tokens, 4, pull=pull_of(a.worker, tokens))
    assert await b.gateway.finish(handle) == expected(b.worker, tokens, 4)
    return b.gateway.started[handle]


async def all_at_rest(*ends: End) -> None:
    await at_rest(*ends)
    for end in ends:
        await until(lambda end=end: not below(end.worker).host.cache.pool.pinned)


async def test_from_the_hosts_memory(tmp_path: Path) -> None:
    async with pair(tmp_path, **SMALL) as (a, b):
        await made_on(a, 1, 1)
        await displaced(a, 2)
        read = a.worker.runner.engine.read_blocks
        a.worker.runner.engine.read_blocks = None  # not by way of the device
        started = await pulled(a, b, 1, 1)
        a.worker.runner.engine.read_blocks = read
        assert (started.peer_tokens, started.pulled.failure) == (BLOCKS * 16, "")
        assert a.worker.exchange.shelf.given_bytes == BLOCKS * SIZE
        await all_at_rest(a, b)


async def test_the_front_from_the_device_the_rest_from_the_host(tmp_path: Path) -> None:
    async with pair(tmp_path, **SMALL) as (a, b):
        await made_on(a, 1, 1)
        await displaced(a, 2)
        a.worker.scheduler.fetching.supplies.clear()
        await a.gateway.submit(9, prompt(1)[:80], 1)
        await a.gateway.end(9)
        started = await pulled(a, b, 1, 1)
        assert (started.peer_tokens, started.pulled.failure) == (BLOCKS * 16, "")
        await all_at_rest(a, b)


def disk(folder: Path) -> dict[str, Any]:
    return {"disk_path": str(folder / "disk"), "disk_bytes": 64 << 20}


async def filled(tmp_path: Path, numbers: range) -> None:
    """The folder of a worker a that has made some prompts and ended."""
    async with giving(tmp_path, "a", **SMALL, **disk(tmp_path)) as worker:
        async with stub_of(worker) as stub, stream(stub) as gateway:
            for number in numbers:
                await made_on(End(worker, gateway), number, number + 1)
                await settled(worker)
        assert below(worker).spilled == BLOCKS * len(numbers)


async def test_from_the_disk_after_a_restart(tmp_path: Path) -> None:
    await filled(tmp_path, range(1))
    async with pair(tmp_path, disk(tmp_path), **SMALL) as (a, b):
        started = await pulled(a, b, 0, 1)
        assert (started.peer_tokens, started.pulled.failure) == (BLOCKS * 16, "")
        await all_at_rest(a, b)
        store = below(a.worker).store
        assert store is not None
        assert all(entry.used for entry in store.catalogue), "it will be moved before it is given up"


async def test_what_is_lent_from_the_disk_stays_readable_though_its_file_goes(tmp_path: Path) -> None:
    await filled(tmp_path, range(1))
    async with giving(tmp_path, "a", **SMALL, **disk(tmp_path)) as worker:
        hashes, store = hashes_of(worker, prompt(0)), below(worker).store
        assert store is not None
        answer = await lease(worker, hashes, grant_of(worker, hashes))
        assert answer.blocks == BLOCKS
        store.collect(0)
        assert not len(store)
        lot = worker.exchange.shelf.open(answer.lease, answer.secret)
        assert lot is not None
        slab = memoryview(bytearray(BLOCKS * SIZE))
        assert lot.fetch(0, BLOCKS, slab) is not None
        worker.exchange.leases.expire(worker.runner.now() + LEASE_TTL_S)
        assert lot.fetch(0, BLOCKS, slab) is None, "not longer than its time"
        again = await lease(worker, hashes, grant_of(worker, hashes))
        assert not again.blocks


async def test_lent_copies_are_not_overwritten_until_their_time_is_over(tmp_path: Path) -> None:
    async with pair(tmp_path, **{**SMALL, "host_bytes": 200 * SIZE}) as (a, _):
        await made_on(a, 1, 1)
        await displaced(a, 2)
        hashes = hashes_of(a.worker, prompt(1))
        answer = await lease(a.worker, hashes, grant_of(a.worker, hashes))
        assert answer.blocks == BLOCKS
        for i in range(6):
            await made_on(a, 10 + i, 10 + i, 55)
            await settled(a.worker)
        host = below(a.worker).host.cache
        assert host.pool.pinned == BLOCKS
        assert host.evictions > 0
        lot = a.worker.exchange.shelf.open(answer.lease, answer.secret)
        assert lot is not None
        assert lot.fetch(0, BLOCKS, memoryview(bytearray(BLOCKS * SIZE))) is not None
        a.worker.exchange.leases.expire(a.worker.runner.now() + LEASE_TTL_S)
        assert not host.pool.pinned


async def test_a_slot_that_was_taken_anew_is_not_blamed(tmp_path: Path) -> None:
    """Its lease ended while it was summed."""
    async with giving(tmp_path, "a", **SMALL) as a, stub_of(a) as stub, stream(stub) as gateway:
        await made_on(End(a, gateway), 1, 1)
        await displaced(End(a, gateway), 2)
        hashes = hashes_of(a, prompt(1))
        answer = await lease(a, hashes, grant_of(a, hashes))
        lot = a.exchange.shelf.open(answer.lease, answer.secret)
        assert lot is not None
        copies = below(a)._copies
        make = copies.sum

        def late(copy: memoryview) -> bytes:
            a.exchange.leases.expire(a.runner.now() + LEASE_TTL_S)
            copy[0] ^= 1
            return make(copy)

        copies.sum = late  # type: ignore[method-assign]
        assert lot.fetch(0, 1, memoryview(bytearray(SIZE))) is None
        assert below(a).complaints.counts["corrupt"] == 0


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_wrong_copy_never_leaves(tmp_path: Path, on_disk: bool) -> None:
    """It is found by the source, which has it from its disk at the next attempt, if anywhere."""
    async with pair(tmp_path, disk(tmp_path) if on_disk else {}, **SMALL) as (a, b):
        await made_on(a, 1, 1)
        await displaced(a, 2)
        host = below(a.worker).host
        node = host.cache.get(hashes_of(a.worker, prompt(1))[7])
        assert node is not None
        below(a.worker).copy(node.block)[5] ^= 1
        started = await pulled(a, b, 1, 1)
        assert started.peer_tokens == (BLOCKS if on_disk else 7) * 16
        assert started.pulled.failure == ("" if on_disk else Failure.GONE)
        assert host.corrupt == 1
        assert not b.worker.exchange.puller.corrupt, "it was not even sent"
        await at_rest(a, b)


async def test_six_hundred_wrong_blocks_on_disk_never_leave(tmp_path: Path) -> None:
    await filled(tmp_path, range(30))
    (path,) = (tmp_path / "disk").glob("*.wfkv")
    async with pair(tmp_path, disk(tmp_path), **SMALL) as (a, b):
        store = below(a.worker).store
        assert store is not None
        with path.open("r+b") as file:
            for entry in store.catalogue:
                file.seek(entry.offset + store._segments[1].record_bytes - 5)
                file.write(b"wrong")
        for number in range(30):
            started = await pulled(a, b, number, number + 1)
            assert started.peer_tokens == 0
        assert store.corrupt == 30, "the first of each prompt: what follows it is not even read"
        await all_at_rest(a, b)


@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_the_target_has_below_is_not_brought_from_a_peer(tmp_path: Path, on_disk: bool) -> None:
    """The front from its own tiers, the rest from the peer."""
    async with pair(tmp_path, disk(tmp_path) if on_disk else {}, **SMALL) as (a, b):
        await made_on(b, 1, 1)
        await made_on(a, 1, 1, 12)
        await displaced(a, 2)
        if on_disk:
            forget_in_host(a)
        hashes = hashes_of(b.worker, prompt(1))
        pull = pull_of(b.worker, prompt(1), target="a")
        brought = await bring(a, BringRequest(root=root_of(b.worker), keys=keys(hashes), pull=pull))
        assert (brought.held_tokens, brought.pulled.failure) == (BLOCKS * 16, "")
        assert brought.pulled.bytes == (BLOCKS - 12) * SIZE
        totals = a.worker.scheduler.fetching.totals
        assert totals.arrived[Source.DISK if on_disk else Source.HOST] == 12
        await all_at_rest(a, b)


def forget_in_host(end: End) -> None:
    """What is in the host's memory does not agree with its sums."""
    host = below(end.worker).host
    host.sums = [b""] * len(host.sums)
    for node in list(host.cache._nodes.values()):
        host.condemn(node.block)
