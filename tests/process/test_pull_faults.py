"""Pulls that go wrong, step by step: nothing wrong is served, every pool balances, every request ends."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.hashing import token_digest
from warmfleet_proto.transfer_pb2 import LeaseResponse
from warmfleet_worker.transfer.leases import Lease
from warmfleet_worker.transfer.pull import Failure
from warmfleet_worker.transfer.shared_memory import SharedLane, SharedMemory
from warmfleet_worker.transfer.shelf import PoolShelf
from warmfleet_worker.transfer.transport import Fill, Filling, Lot, Parcel
from warmfleet_worker.worker import Worker

from tests.process.exchange import End, pair, pull_of
from tests.process.gateway import expected

Fault = Callable[[int, Parcel], Parcel | None]

ROUNDS = 20
BLOCKS = 50  # a round: a thousand in all
PROMPT_TOKENS = BLOCKS * 16 + 5


class FaultyShelf:
    """A source's shelf, and what befalls what is taken from it."""

    def __init__(self, shelf: PoolShelf, fault: Fault) -> None:
        self._shelf = shelf
        self._fault = fault

    def open(self, lease: int, secret: bytes) -> Lot | None:
        lot = self._shelf.open(lease, secret)
        return None if lot is None else FaultyLot(lot, self._fault)


class FaultyLot:
    """Over a data port."""

    def __init__(self, lot: Lot, fault: Fault) -> None:
        self.block_bytes, self.blocks = lot.block_bytes, lot.blocks
        self._lot = lot
        self._fault = fault

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        parcel = self._lot.fetch(first, count, slab)
        return None if parcel is None else self._fault(self.block_bytes, parcel)

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        raise NotImplementedError


def flipped(size: int, parcel: Parcel) -> Parcel:
    """One bit of every block."""
    data = bytearray(b"".join(parcel.parts))
    for start in range(0, len(data), size):
        bit = random.Random(start).randrange(8 * size)
        data[start + bit // 8] ^= 1 << bit % 8
    return Parcel([memoryview(data)], parcel.sums)


def swapped(size: int, parcel: Parcel) -> Parcel:
    """Every block in its neighbour's place, with its own sum."""
    data = b"".join(parcel.parts)
    order = [i ^ 1 for i in range(len(parcel.sums))]
    parts = [memoryview(data[i * size : (i + 1) * size]) for i in order]
    return Parcel(parts, [parcel.sums[i] for i in order])


def truncated(size: int, parcel: Parcel) -> Parcel:
    """Every block shifted: its last half is the next one's first."""
    data = b"".join(parcel.parts)
    half = size // 2
    return Parcel([memoryview(data[half:] + data[:half])], parcel.sums)


class Replayed:
    """The answer to the first question of all, to every later one."""

    def __init__(self) -> None:
        self._old: Parcel | None = None

    def __call__(self, size: int, parcel: Parcel) -> Parcel:
        if self._old is None:
            self._old = Parcel([memoryview(b"".join(parcel.parts))], parcel.sums)
        return self._old


class FaultyLane(SharedLane):
    """What befalls a slab after the sums of its blocks were made."""

    fault: Fault

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        filling = super().fill(slab, lot, first, count)
        return lambda: self._spoilt(slab, count, lot.block_bytes, filling())

    def _spoilt(self, slab: int, count: int, size: int, sums: list[bytes] | None) -> list[bytes] | None:
        if sums is None:
            return None
        memory = self._memory[slab * self.shape.slab_bytes :][: count * size]
        parcel = self.fault(size, Parcel([memoryview(bytes(memory))], sums))
        if parcel is None:
            return None
        memory[:] = b"".join(parcel.parts)
        return parcel.sums


class FaultyMemory(SharedMemory):
    def __init__(self, source: Worker, fault: Fault) -> None:
        super().__init__(source.runner.engine, 1)
        self._fault = fault

    def make(self) -> FaultyLane:
        lane = FaultyLane(self._engine, self._shape)
        lane.fault = self._fault
        return lane


def spoil(source: Worker, fault: Fault) -> None:
    source.exchange.source._shelf = FaultyShelf(source.exchange.shelf, fault)
    for each in source.exchange.lane_sources:
        each._lanes = FaultyMemory(source, fault)


@pytest.fixture(params=["tcp", "shm"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of workers that have one transport."""
    return {"transfer": {"transports": [request.param]}}


def prompt_of(number: int) -> list[int]:
    return random.Random(number).choices(range(30_000), k=PROMPT_TOKENS)


async def made_on(end: End, prompt: list[int], handle: int) -> None:
    await end.gateway.submit(handle, prompt, 1)
    await end.gateway.end(handle)


async def at_rest(*ends: End) -> None:
    async with asyncio.timeout(60):
        for end in ends:
            while end.worker.scheduler.cache.pool.pinned:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            end.worker.scheduler.check_integrity()


@pytest.mark.parametrize("damage", [flipped, swapped, truncated], ids=lambda d: d.__name__)
async def test_a_thousand_damaged_blocks_are_never_served(
    tmp_path: Path, config: dict[str, Any], damage: Fault
) -> None:
    async with pair(tmp_path, **config, total_blocks=4096) as (a, b):
        spoil(a.worker, damage)
        for number in range(1, ROUNDS + 1):
            prompt = prompt_of(number)
            await made_on(a, prompt, number)
            await b.gateway.submit(number, prompt, 5, pull=pull_of(a.worker, prompt))
            assert await b.gateway.finish(number) == expected(b.worker, prompt, 5)
            started = b.gateway.started[number]
            assert (started.peer_tokens, started.cached_tokens) == (0, 0)
            assert started.pulled.failure == Failure.CORRUPT
        puller = b.worker.exchange.puller
        assert puller.corrupt["a"] == 2 * ROUNDS * BLOCKS, (
            "every block of both attempts, under its peer's name"
        )
        assert puller.wasted_bytes == puller.received_bytes
        await at_rest(a, b)


async def test_what_one_transport_damages_comes_by_another(tmp_path: Path) -> None:
    async with pair(tmp_path, total_blocks=4096) as (a, b):
        for source in a.worker.exchange.lane_sources:
            source._lanes = FaultyMemory(a.worker, flipped)
        for number in (1, 2):
            prompt = prompt_of(number)
            await made_on(a, prompt, number)
            await b.gateway.submit(number, prompt, 5, pull=pull_of(a.worker, prompt))
            assert await b.gateway.finish(number) == expected(b.worker, prompt, 5)
            assert b.gateway.started[number].peer_tokens == BLOCKS * 16
        assert b.worker.exchange.puller.corrupt["a"] == BLOCKS, "shared memory is left alone for a while"
        await at_rest(a, b)


async def test_what_has_no_lane_to_spare_is_passed_over_for_one_pull(tmp_path: Path) -> None:
    async with pair(tmp_path, total_blocks=4096) as (a, b):
        (source,) = a.worker.exchange.lane_sources
        puller, most = b.worker.exchange.puller, source._left
        for number, left, came_by in ((1, 0, "tcp"), (2, most, "shm")):
            source._left = left
            prompt, before = prompt_of(number), puller.carried.copy()
            await made_on(a, prompt, number)
            await b.gateway.submit(number, prompt, 5, pull=pull_of(a.worker, prompt))
            assert await b.gateway.finish(number) == expected(b.worker, prompt, 5)
            assert b.gateway.started[number].peer_tokens == BLOCKS * 16
            assert set(puller.carried - before) == {came_by}
        assert puller.pulls == {Failure.NONE: 2}
        await at_rest(a, b)


async def test_replayed_answers_are_never_served(tmp_path: Path, config: dict[str, Any]) -> None:
    """What was right once is wrong for every other block."""
    async with pair(tmp_path, **config, total_blocks=4096) as (a, b):
        spoil(a.worker, Replayed())
        for number in range(ROUNDS + 1):
            prompt = prompt_of(number)
            await made_on(a, prompt, number + 1)
            await b.gateway.submit(number + 1, prompt, 5, pull=pull_of(a.worker, prompt))
            assert await b.gateway.finish(number + 1) == expected(b.worker, prompt, 5)
            assert b.gateway.started[number + 1].peer_tokens == (0 if number else BLOCKS * 16)
        assert b.worker.exchange.puller.corrupt["a"] == 2 * ROUNDS * BLOCKS
        await at_rest(a, b)


async def test_one_damaged_attempt_is_made_good_by_the_next(tmp_path: Path, config: dict[str, Any]) -> None:
    attempts = iter([flipped])

    def once(size: int, parcel: Parcel) -> Parcel:
        damage = next(attempts, None)
        return damage(size, parcel) if damage else parcel

    async with pair(tmp_path, **config) as (a, b):
        spoil(a.worker, once)
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        pulled = b.gateway.started[1].pulled
        assert (pulled.tokens, pulled.failure) == (BLOCKS * 16, "")
        assert pulled.wasted_bytes == pulled.bytes // 2 > 0
        await at_rest(a, b)


@pytest.mark.parametrize("digests", [True, False])
async def test_blocks_that_stand_for_other_tokens_are_refused(
    tmp_path: Path, config: dict[str, Any], digests: bool
) -> None:
    """The token check: a hash that agrees is not enough. Of a source that knows no digests as well."""
    async with pair(tmp_path, **config) as (a, b):
        service = a.worker.exchange.service
        assert service is not None
        honest = service._response

        def lying(lease: Lease | None, digest: bool) -> LeaseResponse:
            assert digest, "the target knows the tokens"
            answer = honest(lease, False)
            answer.token_ids = answer.token_ids[:-4] + b"\1\0\0\0"
            return digested(answer) if digests else answer

        service._response = lying  # type: ignore[method-assign]
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        assert b.gateway.started[1].pulled.failure == Failure.CORRUPT
        assert b.gateway.started[1].peer_tokens == 0
        await at_rest(a, b)


async def test_a_source_that_knows_no_digests_tells_the_tokens(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        service = a.worker.exchange.service
        assert service is not None
        honest = service._response
        service._response = lambda lease, _digest: honest(lease, False)  # type: ignore[method-assign]
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        assert b.gateway.started[1].peer_tokens == BLOCKS * 16
        await at_rest(a, b)


def digested(answer: LeaseResponse) -> LeaseResponse:
    """As the source answers who knows the tokens."""
    answer.token_digest = token_digest(answer.token_ids)
    answer.token_ids = b""
    return answer


async def test_a_lease_that_ends_under_way_is_taken_up_once_more(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    async with pair(tmp_path, **config) as (a, b):
        leases, ended = a.worker.exchange.leases, []

        def end_first(size: int, parcel: Parcel) -> Parcel | None:
            if ended:
                return parcel
            ended.append(leases.expire(a.worker.runner.now() + 1000))
            return None

        spoil(a.worker, end_first)
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        assert (ended, b.gateway.started[1].pulled.failure) == ([1], "")
        await at_rest(a, b)


async def test_a_block_reused_while_it_is_read_never_leaves(tmp_path: Path, config: dict[str, Any]) -> None:
    """The lease ends and its blocks are overwritten between the first look and the copy."""
    async with pair(tmp_path, **config, total_blocks=120) as (a, b):
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)
        engine, leases, cache = a.worker.runner.engine, a.worker.exchange.leases, a.worker.scheduler.cache
        read = engine.read_blocks

        def overwritten(blocks: list[int], copy: memoryview) -> None:
            leases.expire(a.worker.runner.now() + 1000)
            taken = cache.allocate(120)
            engine.pool[:] = 0
            cache.release(taken)
            read(blocks, copy)

        engine.read_blocks = overwritten
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        assert b.gateway.started[1].peer_tokens == 0
        assert b.worker.exchange.puller.corrupt.total() == 0, "it was not even sent"
        assert a.worker.exchange.shelf.given_bytes == 0
        await at_rest(a, b)


async def test_a_target_that_dies_costs_a_lease_no_more_than_its_ttl(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never releases; the source's pool balances when the TTL is over."""
    monkeypatch.setattr("warmfleet_worker.transfer.leases.LEASE_TTL_S", 5.0)
    async with pair(tmp_path, **config) as (a, b):
        prompt = prompt_of(1)
        await made_on(a, prompt, 1)

        async def silent(*_: object) -> None:
            pass

        b.worker.exchange.puller._peers.release = silent  # type: ignore[method-assign]
        await b.gateway.submit(1, prompt, 5, pull=pull_of(a.worker, prompt))
        assert await b.gateway.finish(1) == expected(b.worker, prompt, 5)
        assert len(a.worker.exchange.leases) == 1
        assert a.worker.scheduler.cache.pool.pinned == BLOCKS
        await at_rest(a, b)
        assert a.worker.exchange.service is not None
        assert a.worker.exchange.service.expired == 1
