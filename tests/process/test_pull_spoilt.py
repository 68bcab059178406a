"""A thousand wrong blocks a path, in the source's lower tiers and in what it says of them: none is served."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.hashing import keys, token_digest
from warmfleet_proto.transfer_pb2 import LeaseResponse
from warmfleet_proto.worker_pb2 import BringRequest
from warmfleet_worker.transfer.leases import Lease
from warmfleet_worker.transfer.pull import Failure
from warmfleet_worker.worker import Worker

from tests.process.exchange import End, giving, grant_of, hashes_of, pair, pull_of, root_of
from tests.process.gateway import expected, packed, stream, stub_of
from tests.process.test_bring import bring
from tests.process.test_pull import at_rest, lease, made_on, until
from tests.process.test_pull_faults import BLOCKS, ROUNDS, prompt_of
from tests.process.test_tiers import below, settled
from tests.unit.tiers.spoils import SPOILS, spoilt

SIZE = 128  # of a block
IDS = 64  # bytes of its token ids
BELOW: dict[str, Any] = {"total_blocks": 60, "host_bytes": 1100 * SIZE}

Spoil = Callable[[bytes], bytes]


async def filled(worker: Worker) -> list[list[bytes]]:
    """The hashes of the prompts that it has made and written back, a list each."""
    async with stub_of(worker) as stub, stream(stub) as gateway:
        for number in range(ROUNDS + 2):  # the last two leave nothing of the others on the device
            await made_on(End(worker, gateway), prompt_of(number), number + 1)
            await settled(worker)
    return [hashes_of(worker, prompt_of(number)) for number in range(ROUNDS)]


async def left_whole(worker: Worker, hashes: list[bytes]) -> int:
    """Blocks of a prompt that a target gets, each asked for by itself."""
    answer = await lease(worker, hashes, grant_of(worker, hashes))
    assert answer.blocks == BLOCKS
    lot = worker.exchange.shelf.open(answer.lease, answer.secret)
    assert lot is not None
    slab = memoryview(bytearray(SIZE))
    whole = sum(lot.fetch(i, 1, slab) is not None for i in range(BLOCKS))
    worker.exchange.leases.release(answer.lease, answer.secret)
    return whole


@pytest.mark.parametrize("how", SPOILS)
async def test_a_thousand_wrong_copies_in_host_memory_never_leave(tmp_path: Path, how: str) -> None:
    async with giving(tmp_path, "a", **BELOW) as worker:
        prompts = await filled(worker)
        host, lower, rng = below(worker).host, below(worker), random.Random(3)
        found = [host.cache.get(each) for hashes in prompts for each in hashes]
        slots = [node.block for node in found if node is not None]
        copies = [bytes(lower.copy(slot)) for slot in slots]
        assert len(set(copies)) == ROUNDS * BLOCKS
        assert await left_whole(worker, prompts[0]) == BLOCKS
        for i, slot in enumerate(slots):
            lower.copy(slot)[:] = spoilt(how, copies, i, rng)
        assert [await left_whole(worker, hashes) for hashes in prompts] == [0] * ROUNDS
        await until(lambda: host.corrupt == ROUNDS * BLOCKS)


@pytest.mark.parametrize("how", SPOILS)
async def test_a_thousand_wrong_copies_on_disk_never_leave(tmp_path: Path, how: str) -> None:
    settings = {**BELOW, "host_bytes": 60 * SIZE, "disk_path": str(tmp_path / "disk"), "disk_bytes": 64 << 20}
    async with giving(tmp_path, "a", **settings) as worker:
        await filled(worker)
    async with giving(tmp_path, "a", **settings) as worker:
        store, rng = below(worker).store, random.Random(4)
        assert store is not None
        prompts = [hashes_of(worker, prompt_of(number)) for number in range(ROUNDS)]
        found = [store.catalogue.get(each) for hashes in prompts for each in hashes]
        ((path,), segment) = (tmp_path / "disk").glob("*.wfkv"), store._segments[1]
        places = [each.offset + segment.record_bytes - SIZE for each in found if each is not None]
        data = path.read_bytes()
        copies = [data[at : at + SIZE] for at in places]
        assert len(set(copies)) == ROUNDS * BLOCKS
        assert await left_whole(worker, prompts[0]) == BLOCKS
        with path.open("r+b") as file:
            for i, at in enumerate(places):
                file.seek(at)
                file.write(spoilt(how, copies, i, rng))
        assert [await left_whole(worker, hashes) for hashes in prompts] == [0] * ROUNDS
        assert store.corrupt == ROUNDS * BLOCKS


def flipped(ids: bytes) -> bytes:
    """One bit of every block's."""
    data = bytearray(ids)
    for start in range(0, len(data), IDS):
        bit = random.Random(start).randrange(8 * IDS)
        data[start + bit // 8] ^= 1 << bit % 8
    return bytes(data)


def truncated(ids: bytes) -> bytes:
    """Every block without its last token."""
    return b"".join([ids[at : at + IDS - 4] for at in range(0, len(ids), IDS)])


def swapped(ids: bytes) -> bytes:
    """Every block's in its neighbour's place."""
    return b"".join([ids[(at ^ IDS) : (at ^ IDS) + IDS] for at in range(0, len(ids), IDS)])


def replayed(ids: bytes) -> bytes:
    """Those of another prompt: right once."""
    return packed(prompt_of(0))[: len(ids)]


@pytest.mark.parametrize("spoil", [flipped, truncated, swapped, replayed], ids=lambda each: each.__name__)
async def test_a_thousand_blocks_for_other_tokens_are_not_even_asked_for(
    tmp_path: Path, spoil: Spoil
) -> None:
    """Neither for a request nor where the router has a prefix brought."""
    async with pair(tmp_path, total_blocks=4096) as (a, b):
        lying(a.worker, spoil)
        for number in range(1, ROUNDS + 1):
            prompt = prompt_of(number)
            await made_on(a, prompt, number)
            named, pull = keys(hashes_of(a.worker, prompt)), pull_of(a.worker, prompt)
            brought = await bring(b, BringRequest(root=root_of(a.worker), keys=named, pull=pull))
            assert (brought.held_tokens, brought.pulled.failure) == (0, Failure.CORRUPT)
            await b.gateway.submit(number, prompt, 5, pull=pull)
            assert await b.gateway.finish(number) == expected(b.worker, prompt, 5)
            started = b.gateway.started[number]
            assert (started.peer_tokens, started.pulled.failure) == (0, Failure.CORRUPT)
        assert a.worker.exchange.service is not None
        assert a.worker.exchange.service.lent == 2 * ROUNDS
        assert a.worker.exchange.shelf.given_bytes == 0
        await at_rest(a, b)


def lying(source: Worker, spoil: Spoil) -> None:
    """About the tokens that its blocks stand for."""
    service = source.exchange.service
    assert service is not None
    honest = service._response

    def told(lease: Lease | None, digest: bool) -> LeaseResponse:
        answer = honest(lease, False)
        answer.token_ids = spoil(answer.token_ids)
        if digest:
            answer.token_digest = token_digest(answer.token_ids)
            answer.token_ids = b""
        return answer

    service._response = told  # type: ignore[method-assign]


async def test_an_answer_that_comes_again_opens_nothing(tmp_path: Path) -> None:
    """Its tokens are right, but its lease is over."""
    async with pair(tmp_path, total_blocks=120) as (a, b):
        service, first = a.worker.exchange.service, list[LeaseResponse]()
        assert service is not None
        honest = service._response

        def again(lease: Lease | None, digest: bool) -> LeaseResponse:
            first.append(honest(lease, digest))
            return first[0]

        service._response = again  # type: ignore[method-assign]
        prompt, cache = prompt_of(1), b.worker.scheduler.cache
        await made_on(a, prompt)
        for handle, came in ((1, BLOCKS * 16), (2, 0)):
            await b.gateway.submit(handle, prompt, 5, pull=pull_of(a.worker, prompt))
            assert await b.gateway.finish(handle) == expected(b.worker, prompt, 5)
            assert b.gateway.started[handle].peer_tokens == came
            await until(lambda: not cache.pool.pinned)
            cache.release(cache.allocate(120))  # what came is gone again
        assert b.gateway.started[2].pulled.failure == Failure.LOST
        a.worker.exchange.leases.expire(a.worker.runner.now() + 1000)  # those that nobody was told of
        await at_rest(a, b)
