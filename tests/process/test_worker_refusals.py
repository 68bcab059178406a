"""What a worker refuses over real gRPC, and what goes on beside it."""

import asyncio

import grpc
import pytest
from warmfleet_proto import limits
from warmfleet_proto import worker_pb2 as pb
from warmfleet_worker import sessions

from tests.process.fleet import idle, sim_worker
from tests.process.gateway import ENDLESS, expected, packed, stream, stub_of

SLOW = {"sim": {"timing": {"step_s": 0.005}}}  # a request of ENDLESS tokens outlives any test


BAD = [
    (pb.Submit(prompt_tokens=0), "prompt_tokens"),
    (pb.Submit(prompt_tokens=2, token_ids=b"abc"), "token_ids"),
    (pb.Submit(prompt_tokens=1, token_ids=bytes(8)), "token_ids"),
    (pb.Submit(prompt_tokens=1, token_ids=packed([32_000])), "32000"),
    (pb.Submit(prompt_tokens=limits.PROMPT_BYTES), "prompt_tokens"),
    (pb.Submit(prompt_tokens=5000, token_ids=bytes(4)), "context"),
    (pb.Submit(prompt_tokens=1, token_ids=bytes(4), sampling=pb.Sampling(choices=2**31)), "choices"),
    (pb.Submit(prompt_tokens=1, token_ids=bytes(4), sampling=pb.Sampling(temperature=-1)), "temperature"),
]


async def test_bad_submits_end_and_the_stream_lives() -> None:
    async with sim_worker(total_blocks=64) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for handle, (submit, named) in enumerate(BAD, 1):
            submit.handle = handle
            await gateway.send(submit=submit)
            ending = await gateway.end(handle)
            assert ending.reason == pb.Ending.BAD_REQUEST
            assert named in ending.message
        await gateway.submit(50, [1, 2], 3)
        assert await gateway.finish(50) == expected(worker, [1, 2], 3)
        await idle(worker)


async def test_bad_frames_end_their_request_only() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        frames = [b"abc", packed([32_000]), bytes(4 * 11), bytes(limits.FRAME_BYTES + 4)]
        for handle, frame in enumerate(frames, 1):
            submit = pb.Submit(handle=handle, prompt_tokens=12 if len(frame) < 100 else 70_000)
            submit.token_ids = packed([1, 2])
            await gateway.send(submit=submit)
            await gateway.send(prompt=pb.PromptFrame(handle=handle, token_ids=frame))
            await gateway.send(prompt=pb.PromptFrame(handle=handle, token_ids=frame))
            assert (await gateway.end(handle)).reason == pb.Ending.BAD_REQUEST
        await gateway.send(prompt=pb.PromptFrame(handle=77, token_ids=packed([1])))
        await gateway.submit(50, [1, 2], 3)
        assert await gateway.finish(50) == expected(worker, [1, 2], 3)


async def test_handle_is_never_used_twice() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await gateway.submit(5, [1], 1)
        await gateway.end(5)
        del gateway.endings[5, 0]
        gateway.tokens[5, 0].clear()
        await gateway.submit(5, [1], 1)
        ending = await gateway.end(5)
        assert (ending.reason, "handle" in ending.message) == (pb.Ending.BAD_REQUEST, True)


@pytest.mark.parametrize(
    "first",
    [
        pb.ServeRequest(),
        pb.ServeRequest(cancel=pb.Cancel(handle=1)),
        pb.ServeRequest(open=pb.Open()),
        pb.ServeRequest(open=pb.Open(gateway_id="x" * 129)),
    ],
)
async def test_stream_begins_with_open(first: pb.ServeRequest) -> None:
    async with sim_worker() as worker, stub_of(worker) as stub:
        call = stub.Serve()
        await call.write(first)
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_second_open_breaks_the_stream() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub:
        call = stub.Serve()
        await call.write(pb.ServeRequest(open=pb.Open(gateway_id="a")))
        await call.write(pb.ServeRequest(open=pb.Open(gateway_id="a")))
        assert await call.code() == grpc.StatusCode.ABORTED
        assert "open" in await call.details()


async def test_full_queue_rejects() -> None:
    async with (
        sim_worker(max_running=1, max_waiting=1, **SLOW) as worker,
        stub_of(worker) as stub,
        stream(stub) as gateway,
    ):
        await gateway.submit(1, [1], ENDLESS)
        await gateway.until(1, 1)
        await gateway.submit(2, [2], 1)
        await gateway.submit(3, [3], 1)
        assert (await gateway.end(3)).reason == pb.Ending.REJECTED
        await gateway.send(cancel=pb.Cancel(handle=1))
        assert await gateway.finish(2) == expected(worker, [2], 1)


async def test_too_many_gateways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 1)
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub, "a") as gateway:
        await gateway.call.initial_metadata()
        call = stub.Serve()
        await call.write(pb.ServeRequest(open=pb.Open(gateway_id="b")))
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        await gateway.submit(1, [1], 1)
        await gateway.end(1)


async def test_prompts_that_arrive_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short they are: the rest of one may never come. Whole ones do not count."""
    monkeypatch.setattr(sessions, "_INCOMING_BYTES", 2 * limits.FRAME_BYTES)
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for handle in (1, 2, 3):
            half = pb.Submit(handle=handle, prompt_tokens=20, token_ids=packed(range(10)))
            await gateway.send(submit=half)
        assert (await gateway.end(3)).reason == pb.Ending.REJECTED
        await gateway.submit(4, range(10), 1)
        assert (await gateway.end(4)).reason == pb.Ending.LENGTH
        await gateway.send(cancel=pb.Cancel(handle=1))
        assert (await gateway.end(1)).reason == pb.Ending.CANCELLED
        await gateway.send(submit=pb.Submit(handle=5, prompt_tokens=20, token_ids=packed(range(10))))
        await gateway.send(prompt=pb.PromptFrame(handle=5, token_ids=packed(range(10))))
        for handle in (6, 7):
            half = pb.Submit(handle=handle, prompt_tokens=20, token_ids=packed(range(10)))
            await gateway.send(submit=half)
        assert (await gateway.end(7)).reason == pb.Ending.REJECTED


async def test_half_a_prompt_dies_with_its_stream() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as old:
        await old.send(submit=pb.Submit(handle=1, prompt_tokens=20, token_ids=packed(range(10))))
        await old.submit(2, [1], 1)
        await old.end(2)
        async with stream(stub, reattach={1: [0]}) as new:
            assert (await new.end(1)).reason == pb.Ending.FAILED
            (session,) = worker.service._sessions._sessions.values()
            assert (session._incoming, session._incoming_bytes) == ({}, 0)
        await asyncio.gather(old.reader, return_exceptions=True)
        old.reader = asyncio.create_task(asyncio.sleep(0))
