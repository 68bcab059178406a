"""Blocks pulled between workers over real sockets, with the engine that notices wrong KV."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from warmfleet_proto import transfer_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.transfer_pb2_grpc import TransferStub
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_worker.transfer.frames import hello
from warmfleet_worker.transfer.pull import Failure
from warmfleet_worker.transfer.refusal import Refusal
from warmfleet_worker.worker import Worker

from tests.process.exchange import End, giving, grant_of, hashes_of, pair, pull_of, root_of
from tests.process.gateway import Stream, expected, stream, stub_of
from tests.unit.transfer.certificates import authority, certificate

PROMPT = list(range(200))  # twelve full blocks and a half


async def made_on(end: End, prompt: list[int] = PROMPT, handle: int = 1, **submit: Any) -> None:
    await end.gateway.submit(handle, prompt, 1, **submit)
    await end.gateway.end(handle)


async def answered(end: End, prompt: list[int], handle: int, **submit: Any) -> pb.Pulled:
    """The oracle's answer, however the prompt's blocks came."""
    salt = submit.get("salt", b"")
    await end.gateway.submit(handle, prompt, 5, **submit)
    assert await end.gateway.finish(handle) == expected(end.worker, prompt, 5, salt=salt)
    pulled: pb.Pulled = end.gateway.started[handle].pulled
    return pulled


async def at_rest(*ends: End) -> None:
    """Every pool balances: nothing runs, nothing is lent, nothing is on its way."""
    for end in ends:
        await until(lambda end=end: not end.worker.scheduler.cache.pool.pinned)
        end.worker.scheduler.check_integrity()


async def until(holds: Callable[[], bool]) -> None:
    """Looks every few milliseconds: what is waited for happens in threads and other workers."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_prefix_made_elsewhere_is_a_hit(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        started, size = b.gateway.started[1], b.worker.runner.engine.block_bytes
        assert (started.cached_tokens, started.peer_tokens) == (192, 192)
        assert (pulled.tokens, pulled.bytes, pulled.wasted_bytes, pulled.failure) == (192, 12 * size, 0, "")
        assert pulled.seconds > 0
        assert len(b.worker.presence) == len(a.worker.presence)
        assert a.worker.exchange.shelf.given_bytes == 12 * size
        await at_rest(a, b)
        assert b.worker.exchange.puller.usual_s("a", 12), "what it takes from there is known now"
        assert b.worker.exchange.puller.usual_s("another", 12) is None
        again = await answered(b, [*PROMPT[:192], 7], 2)
        assert b.gateway.started[2].cached_tokens == 192, "it stays in the target's cache"
        assert not again.bytes


async def test_only_what_the_target_lacks_is_pulled(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        await made_on(b, PROMPT[:70])
        pulled = await answered(b, PROMPT, 2, pull=pull_of(a.worker, PROMPT, first=2))
        assert pulled.tokens == 192 - 64
        assert b.gateway.started[2].cached_tokens == 192
        await at_rest(a, b)


async def test_what_the_source_has_lost_is_computed(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a, PROMPT[:100])
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        assert (pulled.tokens, pulled.failure) == (96, Failure.GONE)
        assert b.gateway.started[1].cached_tokens == 96
        await at_rest(a, b)


async def test_nothing_there_at_all(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        assert (pulled.tokens, pulled.failure) == (0, Failure.GONE)
        await at_rest(a, b)


async def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        pull = pull_of(a.worker, PROMPT)
        pull.address = "127.0.0.1:1"
        pulled = await answered(b, PROMPT, 1, pull=pull)
        assert pulled.failure in (Failure.LOST, Failure.GIVEN_UP)
        await at_rest(a, b)


async def test_siblings_pull_once(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        for handle in range(1, 6):
            await b.gateway.submit(handle, [*PROMPT, handle], 5, pull=pull_of(a.worker, PROMPT))
        for handle in range(1, 6):
            assert await b.gateway.finish(handle) == expected(b.worker, [*PROMPT, handle], 5)
            assert b.gateway.started[handle].cached_tokens == 192
        assert a.worker.exchange.shelf.given_bytes == 12 * b.worker.runner.engine.block_bytes
        await at_rest(a, b)


async def test_a_slow_link_is_given_up_at_the_soft_timeout(tmp_path: Path) -> None:
    """The source gives a block of 128 bytes every second; the target waits a fifth of one."""
    async with pair(tmp_path, transfer={"bytes_per_s": 128.0}) as (a, b):
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT, within_s=0.2))
        assert pulled.failure == Failure.GIVEN_UP
        assert b.gateway.started[1].queue_s < 8, "the whole takes twelve"
        assert b.gateway.started[1].peer_tokens == 0


async def test_a_request_that_leaves_leaves_no_pin(tmp_path: Path) -> None:
    async with pair(tmp_path, transfer={"bytes_per_s": 1000.0}) as (a, b):
        await made_on(a)
        await b.gateway.submit(1, PROMPT, 5, pull=pull_of(a.worker, PROMPT))
        await until(lambda: b.worker.scheduler.cache.pool.pinned > 0)
        await b.gateway.send(cancel={"handle": 1})
        await b.gateway.end(1)
        await at_rest(a, b)
        assert b.worker.exchange.puller.pulls == {Failure.GIVEN_UP: 1}


# ---- who gets what ---------------------------------------------------------------------------------


async def lease(source: Worker, of: list[bytes], by: pb.Grant, **changes: Any) -> pb.LeaseResponse:
    """Of the blocks ``of``, by the grant ``by``."""
    request = {
        "target": "b",
        "grant": by,
        "layout_fingerprint": source.runner.engine.layout,
        "first": 0,
        "hashes": b"".join(of),
        **changes,
    }
    async with connect(source.grpc_address) as channel:
        answer: pb.LeaseResponse = await TransferStub(channel).Lease(pb.LeaseRequest(**request))
        return answer


CASES: dict[Refusal, tuple[grpc.StatusCode, dict[str, Any], dict[str, Any]]] = {
    # what differs in the claims, and what in the request
    Refusal.EXPIRED: (grpc.StatusCode.PERMISSION_DENIED, {"expires_s": 0.0}, {}),
    Refusal.OTHER_TARGET: (grpc.StatusCode.PERMISSION_DENIED, {"target": "c"}, {}),
    Refusal.OTHER_EPOCH: (grpc.StatusCode.PERMISSION_DENIED, {"epoch": 1}, {}),
    Refusal.OTHER_TENANT: (grpc.StatusCode.PERMISSION_DENIED, {"root": bytes(16)}, {}),
    Refusal.NOT_GRANTED: (grpc.StatusCode.PERMISSION_DENIED, {"keys": bytes(8)}, {}),
    Refusal.OTHER_LAYOUT: (grpc.StatusCode.FAILED_PRECONDITION, {}, {"layout_fingerprint": b"x"}),
    Refusal.MALFORMED: (grpc.StatusCode.INVALID_ARGUMENT, {}, {"hashes": b"short"}),
    Refusal.FORGED: (grpc.StatusCode.PERMISSION_DENIED, {}, {"grant": pb.Grant(claims=b"x", mac=bytes(32))}),
}


@pytest.mark.parametrize("refusal", CASES)
async def test_refused_counted_and_logged(
    tmp_path: Path, refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    code, claims, request = CASES[refusal]
    async with pair(tmp_path) as (a, _):
        await made_on(a)
        hashes = hashes_of(a.worker, PROMPT)
        assert (await lease(a.worker, hashes, grant_of(a.worker, hashes))).blocks == 12
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await lease(a.worker, hashes, grant_of(a.worker, hashes, **claims), **request)
        assert raised.value.code() == code
        assert a.worker.exchange.service is not None
        assert a.worker.exchange.service.refused == {refusal: 1}
        assert f"({refusal})" in caplog.text
        assert len(a.worker.exchange.leases) == 1, "only the good one"


async def test_another_tenants_prefix_is_not_granted(tmp_path: Path) -> None:
    """The same prompt under two salts: B's grant opens nothing of A's, and its request computes."""
    async with pair(tmp_path) as (a, b):
        await made_on(a, salt=b"tenant a")
        theirs = hashes_of(a.worker, PROMPT, b"tenant a")
        own = grant_of(a.worker, hashes_of(a.worker, PROMPT, b"tenant b"), salt=b"tenant b")
        with pytest.raises(grpc.aio.AioRpcError, match="not_granted"):
            await lease(a.worker, theirs, own)
        mixed = grant_of(a.worker, theirs, root=root_of(a.worker, b"tenant b"))
        with pytest.raises(grpc.aio.AioRpcError, match="other_tenant"):
            await lease(a.worker, theirs, mixed)
        pulled = await answered(
            b, PROMPT, 1, pull=pull_of(a.worker, PROMPT, salt=b"tenant b"), salt=b"tenant b"
        )
        assert pulled.tokens == 0


async def test_a_grant_that_is_refused_costs_the_request_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT, expires_s=0.0))
        assert (pulled.tokens, pulled.failure) == (0, Failure.REFUSED)
        await at_rest(a, b)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("pull", {"from_tokens": 3}),
        ("pull", {"tokens": 2**32 - 16}),
        ("pull.within_s", {"within_s": float("nan")}),
        ("pull.seconds", {"seconds": -1.0}),
        ("pull.address", {"address": "nowhere"}),
        ("pull.source", {"source": "x" * 200}),
    ],
)
async def test_a_nonsensical_pull_is_a_bad_request(tmp_path: Path, field: str, changes: Any) -> None:
    async with pair(tmp_path) as (a, b):
        pull = pull_of(a.worker, PROMPT)
        pull.MergeFrom(pb.Pull(**changes))
        await b.gateway.submit(1, PROMPT, 5, pull=pull)
        ending = await b.gateway.end(1)
        assert ending.reason == 5  # BAD_REQUEST
        assert field in ending.message


async def test_a_worker_without_a_key_gives_nothing(tmp_path: Path) -> None:
    from tests.process.fleet import sim_worker

    async with sim_worker(name="a") as worker, connect(worker.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await TransferStub(channel).Lease(pb.LeaseRequest())
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_fleet_with_tls_moves_blocks_over_tls(tmp_path: Path) -> None:
    """Mutual TLS on every port: leases over gRPC, bytes over the data port."""
    tls = certificate(tmp_path, "worker", authority(tmp_path, "fleet"))
    over = {"transports": ["tcp"]}
    wire = {"certificate": tls.certificate, "key": tls.key, "authority": tls.authority}
    async with (
        giving(tmp_path, "a", tls=wire, transfer=over) as a,
        giving(tmp_path, "b", tls=wire, transfer=over) as b,
        connect(a.grpc_address, tls) as to_a,
        connect(b.grpc_address, tls) as to_b,
        stream(WorkerStub(to_a)) as at_a,  # type: ignore[no-untyped-call]
        stream(WorkerStub(to_b)) as at_b,  # type: ignore[no-untyped-call]
    ):
        await made_on(End(a, at_a))
        pulled = await answered(End(b, at_b), PROMPT, 1, pull=pull_of(a, PROMPT))
        assert (pulled.tokens, pulled.failure) == (192, "")
        (offer,) = a.exchange.service.offers
        with socket.create_connection(("127.0.0.1", offer.port), 5) as plain:
            plain.sendall(hello(1, bytes(16)))
            with contextlib.suppress(ConnectionResetError):
                assert b"WFT" not in plain.recv(100), "nothing is said in the clear"


async def test_workers_of_one_host_share_memory(tmp_path: Path) -> None:
    async with pair(tmp_path) as (a, b):
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        assert pulled.tokens == 192
        assert b.worker.exchange.puller.carried == {"shm": pulled.bytes}


async def test_where_memory_cannot_be_shared_the_next_attempt_takes_the_network(tmp_path: Path) -> None:
    """As between two containers: the host is the same, the socket is not found."""
    async with pair(tmp_path) as (a, b):
        assert a.worker.exchange.service is not None
        (shared,) = [o for o in a.worker.exchange.service.offers if o.transport == "shm"]
        shared.socket = "warmfleet-nobody"
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        assert (pulled.tokens, pulled.failure) == (192, "")
        assert +b.worker.exchange.puller.carried == {"tcp": pulled.bytes}


async def test_a_target_that_is_closed_gives_its_lease_back(tmp_path: Path) -> None:
    async with giving(tmp_path, "a", transfer={"bytes_per_s": 1000.0}) as a, stream_of(a) as at_a:
        await made_on(End(a, at_a))
        async with giving(tmp_path, "b") as b, stream_of(b) as at_b:
            await at_b.submit(1, PROMPT, 5, pull=pull_of(a, PROMPT))
            await until(lambda: len(a.exchange.leases) == 1)
        await until(lambda: not len(a.exchange.leases))
        assert a.exchange.service is not None
        assert a.exchange.service.expired == 0


async def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    async with (
        giving(tmp_path, "a", transfer={"transports": ["tcp"]}) as a,
        giving(tmp_path, "b", transfer={"transports": ["shm"]}) as b,
        stream_of(a) as at_a,
        stream_of(b) as at_b,
    ):
        await made_on(End(a, at_a))
        pulled = await answered(End(b, at_b), PROMPT, 1, pull=pull_of(a, PROMPT))
        assert (pulled.tokens, pulled.failure) == (0, Failure.REFUSED)


@contextlib.asynccontextmanager
async def stream_of(worker: Worker) -> AsyncIterator[Stream]:
    async with stub_of(worker) as stub, stream(stub) as opened:
        yield opened


async def test_nixl_moves_blocks_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("nixl")
    async with pair(tmp_path, transfer={"transports": ["nixl"]}) as (a, b):
        await made_on(a)
        pulled = await answered(b, PROMPT, 1, pull=pull_of(a.worker, PROMPT))
        assert (pulled.tokens, pulled.failure) == (192, "")
        assert b.worker.exchange.puller.carried == {"nixl": pulled.bytes}
        await at_rest(a, b)


async def test_under_tls_nothing_leaves_by_nixl(tmp_path: Path) -> None:
    """It encrypts nothing."""
    tls = certificate(tmp_path, "worker", authority(tmp_path, "fleet"))
    wire = {"certificate": tls.certificate, "key": tls.key, "authority": tls.authority}
    async with giving(tmp_path, "a", tls=wire) as a:
        assert a.exchange.service is not None
        assert {offer.transport for offer in a.exchange.service.offers} == {"tcp", "shm"}
