"""Blocks brought for which no request waits, over real sockets, with the engine that notices wrong KV."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import keys
from warmfleet_proto.transfer_pb2 import Pull
from warmfleet_worker import pace
from warmfleet_worker.transfer.bringer import MAX_BRINGS
from warmfleet_worker.transfer.pull import Failure

from tests.process.exchange import End, hashes_of, pair, pull_of, root_of
from tests.process.gateway import expected, stub_of
from tests.process.test_pull import PROMPT, answered, at_rest, made_on, until


def bring_of(source: End, *, first: int = 0, salt: bytes = b"", **changes: Any) -> pb.BringRequest:
    """Of all full blocks of PROMPT."""
    return pb.BringRequest(
        root=root_of(source.worker, salt),
        keys=keys(hashes_of(source.worker, PROMPT, salt)),
        pull=pull_of(source.worker, PROMPT, first=first, salt=salt, **changes),
    )


async def bring(at: End, request: pb.BringRequest) -> pb.BringResponse:
    async with stub_of(at.worker) as stub:
        answer: pb.BringResponse = await stub.Bring(request)
        return answer


async def test_a_prefix_is_brought_before_anyone_asks_for_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a, salt=b"t")
        brought = await bring(b, bring_of(a, salt=b"t"))
        assert (brought.held_tokens, brought.pulled.tokens, brought.pulled.failure) == (192, 192, "")
        assert brought.pulled.bytes == 12 * b.worker.runner.engine.block_bytes
        assert len(b.worker.presence) == 12, "announced"
        assert a.worker.exchange.service is not None
        await until(lambda: not a.worker.exchange.leases.held())
        assert a.worker.exchange.service.expired == 0
        await at_rest(a, b)
        pulled = await answered(b, PROMPT, 1, salt=b"t")
        assert b.gateway.started[1].cached_tokens == 192
        assert not pulled.bytes
        again = await bring(b, bring_of(a, salt=b"t"))
        assert (again.held_tokens, again.pulled.tokens, again.pulled.bytes) == (192, 0, 0)


async def test_only_what_is_lacking_and_held_there_comes(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a, PROMPT[:100])
        await made_on(b, PROMPT[:70])
        brought = await bring(b, bring_of(a, first=2))
        assert (brought.held_tokens, brought.pulled.tokens) == (96, 32)
        assert brought.pulled.bytes == 2 * b.worker.runner.engine.block_bytes
        await at_rest(a, b)


async def test_a_request_that_comes_meanwhile_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    async with pair(tmp_path, transfer={"bytes_per_s": 4000.0}) as (a, b):
        await made_on(a)
        coming = asyncio.create_task(bring(b, bring_of(a)))
        await until(lambda: b.worker.scheduler.fetching.busy)
        await answered(b, PROMPT, 1)
        assert b.gateway.started[1].cached_tokens == 192
        assert (await coming).pulled.tokens == 192
        await at_rest(a, b)


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"keys": b"x" * 96}, Failure.GONE),
        ({"root": bytes(16)}, Failure.GONE),
        ({"expires_s": 0.0}, Failure.REFUSED),
    ],
)
async def test_what_is_not_granted_does_not_come(
    tmp_path: Path, changes: dict[str, Any], failure: Failure
) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        brought = await bring(b, bring_of(a, **changes))
        assert (brought.held_tokens, brought.pulled.failure) == (0, failure)
        await at_rest(a, b)


async def test_tokens_with_other_keys_are_not_taken(tmp_path: Path) -> None:
    """The grant is good, but what the router says that the blocks are called is something else."""
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        request = bring_of(a)
        request.keys = request.keys[:-8] + bytes(8)
        brought = await bring(b, request)
        assert (brought.held_tokens, brought.pulled.failure) == (0, Failure.CORRUPT)
        await at_rest(a, b)


async def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        request = bring_of(a)
        request.pull.address = "127.0.0.1:1"
        assert (await bring(b, request)).pulled.failure == Failure.LOST
        await at_rest(a, b)


async def test_a_slow_link_is_given_up_in_time(tmp_path: Path) -> None:
    """The source gives a block of 128 bytes every second."""
    async with pair(tmp_path, transfer={"bytes_per_s": 128.0}) as (a, b):
        await made_on(a)
        brought = await bring(b, bring_of(a, within_s=0.05))
        assert brought.pulled.failure == Failure.GIVEN_UP
        await at_rest(a, b)


async def test_what_is_given_up_while_a_request_waits_for_it_goes_on_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_FIRST_PATIENCE_S", 4.0)  # the request's, long after the order's second
    async with pair(tmp_path, transfer={"bytes_per_s": 256.0}) as (a, b):
        await made_on(a)
        coming = asyncio.create_task(bring(b, bring_of(a, within_s=1.0)))
        await until(lambda: b.worker.scheduler.fetching.busy)
        await b.gateway.submit(1, PROMPT, 5)
        assert (await coming).pulled.failure == Failure.GIVEN_UP
        assert b.worker.scheduler.fetching.busy
        assert await b.gateway.finish(1) == expected(b.worker, PROMPT, 5)
        await at_rest(a, b)


async def test_a_source_that_says_half_a_token_is_corrupt(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        service = a.worker.exchange.service
        assert service is not None
        tell = service._response

        def odd(lease: Any, digest: bool) -> Any:
            answer = tell(lease, digest)
            answer.token_ids += b"x"
            return answer

        service._response = odd  # type: ignore[method-assign]
        assert (await bring(b, bring_of(a))).pulled.failure == Failure.CORRUPT
        await at_rest(a, b)


async def test_a_router_that_leaves_leaves_nothing_on_its_way(tmp_path: Path) -> None:
    async with pair(tmp_path, transfer={"bytes_per_s": 128.0}) as (a, b):
        await made_on(a)
        coming = asyncio.create_task(bring(b, bring_of(a)))
        await until(lambda: b.worker.scheduler.fetching.busy)
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await coming
        await until(lambda: not b.worker.scheduler.fetching.busy)
        await at_rest(a, b)
        assert b.worker.exchange.puller.pulls == {Failure.GIVEN_UP: 1}


async def test_no_more_than_a_few_at_once_and_none_while_draining(tmp_path: Path) -> None:
    async with pair(tmp_path, transfer={"bytes_per_s": 128.0}) as (a, b):
        await made_on(a)
        many = [bring(b, bring_of(a, within_s=1.0)) for _ in range(MAX_BRINGS + 1)]
        ends = await asyncio.gather(*many, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
        assert [error.code() for error in refused] == [grpc.StatusCode.UNAVAILABLE]
        assert await b.worker.drain(1.0) == 0
        with pytest.raises(grpc.aio.AioRpcError, match="draining"):
            await bring(b, bring_of(a))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("root", {"root": b"short"}),
        ("keys", {"keys": b"short"}),
        ("pull", {"pull": Pull(from_tokens=3)}),
        ("pull", {"pull": Pull(tokens=16)}),
    ],
)
async def test_nonsense_is_a_bad_request(tmp_path: Path, field: str, changes: Any) -> None:
    async with pair(tmp_path) as (a, b):
        request = bring_of(a)
        request.MergeFrom(pb.BringRequest(**changes))
        with pytest.raises(grpc.aio.AioRpcError, match=field) as raised:
            await bring(b, request)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_without_a_pull_it_is_a_bad_request(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        request = bring_of(a)
        request.ClearField("pull")
        with pytest.raises(grpc.aio.AioRpcError, match="pull") as raised:
            await bring(b, request)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
