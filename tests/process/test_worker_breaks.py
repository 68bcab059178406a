"""Streams that break, and gateways that come back or do not, over real gRPC."""

import asyncio
from typing import Any

import grpc
import pytest
from warmfleet_proto import worker_pb2 as pb
from warmfleet_worker import sessions

from tests.process.fleet import idle, sim_worker
from tests.process.gateway import ENDLESS, expected, packed, stream, stub_of

SLOW = {"sim": {"timing": {"step_s": 0.005}}}  # a request of ENDLESS tokens outlives any test


async def test_reattach_continues_where_the_gateway_stood() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub:
        options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "logprobs": 1}
        async with stream(stub) as gateway:
            await gateway.submit(1, range(20), 60, choices=2, **options)
            await gateway.submit(2, range(9), 5, **options)
            await gateway.submit(3, range(5), ENDLESS)
            await gateway.end(2)  # ended, but say that its ending was lost
            await gateway.until(1, 8)
            await gateway.until(3, 2)
        async with stream(stub, reattach={1: [6, 3], 2: [4]}) as gateway:
            for handle, prompt, count in ((1, 20, 60), (2, 9, 5)):
                wanted = expected(worker, range(prompt), count, temperature=1.0, seed=4)
                known = {1: 6, 2: 4}[handle]
                tokens = await gateway.finish(handle)
                assert tokens[known:] == wanted[known:]
                assert len(gateway.logprobs[handle, 0]) == count - known
            wanted = expected(worker, range(20), 60, choice=1, temperature=1.0, seed=4)
            assert (await gateway.finish(1, 1))[3:] == wanted[3:]
            await idle(worker)  # 3 was not listed: cancelled


async def test_unknown_handle_fails_at_reattach() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub, reattach={4: [0]}) as gateway:
        assert (await gateway.end(4)).reason == pb.Ending.FAILED


async def test_second_stream_replaces_the_first() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as old:
        await old.submit(1, range(5), 40)
        await old.until(1, 2)
        async with stream(stub, reattach={1: [0]}) as new:
            assert await new.finish(1) == expected(worker, range(5), 40)
            assert await old.call.code() == grpc.StatusCode.ABORTED
            await asyncio.gather(old.reader, return_exceptions=True)
            await new.submit(2, [1, 2], 3)
            assert await new.finish(2) == expected(worker, [1, 2], 3)
        old.reader = asyncio.create_task(asyncio.sleep(0))


async def test_nobody_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "REATTACH_S", 2.0)
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub:
        async with stream(stub) as gateway:
            await gateway.submit(1, range(5), ENDLESS)
            await gateway.until(1, 2)
        assert worker.scheduler.requests
        await idle(worker)
        assert "gateway" not in worker.runner.sinks
        async with stream(stub, reattach={1: [2]}) as gateway:
            assert (await gateway.end(1)).reason == pb.Ending.FAILED


async def test_ended_requests_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "REATTACH_S", 0.0)
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for handle in range(1, 20):
            await gateway.submit(handle, [handle], 2)
            await gateway.end(handle)
        (session,) = worker.service._sessions._sessions.values()
        assert len(session._transcripts) <= 1
        assert len(session._ended) <= 1


async def test_gateway_that_does_not_read_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_worker.outbox.BACKLOG_BYTES", 100_000)
    async with sim_worker(total_blocks=8192) as worker, stub_of(worker) as stub:
        call = stub.Serve()
        await call.write(pb.ServeRequest(open=pb.Open(gateway_id="slow")))
        sampling = pb.Sampling(max_tokens=20_000, logprobs=20, choices=8)
        submit = pb.Submit(handle=1, prompt_tokens=1, token_ids=packed([1]), sampling=sampling)
        await call.write(pb.ServeRequest(submit=submit))
        await call.initial_metadata()
        outbox = next(iter(worker.service._sessions._sessions.values())).outbox
        assert outbox is not None
        async with asyncio.timeout(60):
            await outbox.broken.wait()
        call.cancel()
