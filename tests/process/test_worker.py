"""A worker over real gRPC on loopback, with the engine that notices wrong KV."""

import asyncio
import itertools
import time
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from warmfleet_proto import limits
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_worker import sessions
from warmfleet_worker.engine.base import Finish, Plan
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.gateway import ENDLESS, expected, packed, stream, stub_of

SLOW = {"sim": {"timing": {"step_s": 0.005}}}  # a request of ENDLESS tokens outlives any test


async def idle(worker: Worker) -> None:
    """Nothing runs, no block is pinned."""
    async with asyncio.timeout(60):
        await worker.runner.drain(60)
    worker.scheduler.draining = False
    assert worker.scheduler.cache.pool.pinned == 0
    assert worker.scheduler.requests == {}


# ---- streams -------------------------------------------------------------------------------------


async def test_stream_is_the_oracles() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        prompt = list(range(100))
        await gateway.submit(1, prompt, 20)
        assert await gateway.finish(1) == expected(worker, prompt, 20)
        assert gateway.endings[1, 0].reason == pb.Ending.LENGTH
        assert gateway.started[1].cached_tokens == 0
        await gateway.submit(2, [*prompt, *gateway.tokens[1, 0]], 5)
        await gateway.end(2)
        assert gateway.started[2].cached_tokens == 112  # seven blocks; the eighth lacks a token
        await idle(worker)


@pytest.mark.parametrize("depth", [1, 2])
async def test_many_at_once_and_one_message_a_step(depth: int) -> None:
    async with sim_worker(total_blocks=400) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        worker.runner.engine.depth = depth
        asked = {h: [*range(40), h, *range(h % 7)] for h in range(1, 41)}
        for handle, prompt in asked.items():
            await gateway.submit(handle, prompt, 10 + handle % 9, temperature=1.0, seed=handle)
        for handle, prompt in asked.items():
            wanted = expected(worker, prompt, 10 + handle % 9, temperature=1.0, seed=handle)
            assert await gateway.finish(handle) == wanted
        assert len(gateway.steps) == len(set(gateway.steps))
        await idle(worker)


async def test_choices_and_logprobs() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        prompt = list(range(37))
        await gateway.submit(1, prompt, 9, choices=3, temperature=0.7, seed=11, logprobs=2, prompt_logprobs=1)
        for choice in range(3):
            wanted = expected(worker, prompt, 9, choice=choice, temperature=0.7, seed=11)
            assert await gateway.finish(1, choice) == wanted
            assert [packed(wanted[i : i + 1]) for i in range(9)] == [
                each.top_ids[:4] for each in gateway.logprobs[1, choice]
            ]
        assert [each.top_ids for each in gateway.prompt_logprobs[1]] == [packed([i]) for i in range(1, 37)]


async def test_long_prompt_arrives_in_frames() -> None:
    async with (
        sim_worker(total_blocks=9000, chunk_tokens=100_000) as worker,
        stub_of(worker) as stub,
        stream(stub) as gateway,
    ):
        prompt = [i % 5000 for i in range(130_000)]
        data, step = packed(prompt), limits.FRAME_BYTES
        frames = [data[i : i + step] for i in range(0, len(data), step)]
        await gateway.send(
            submit=pb.Submit(
                handle=1,
                prompt_tokens=len(prompt),
                token_ids=frames[0],
                sampling=pb.Sampling(max_tokens=3),
            )
        )
        for frame in frames[1:]:
            await gateway.send(prompt=pb.PromptFrame(handle=1, token_ids=frame))
        assert await gateway.finish(1) == expected(worker, prompt, 3)


async def test_two_gateways_with_equal_handles() -> None:
    async with (
        sim_worker() as worker,
        stub_of(worker) as stub,
        stream(stub, "a") as one,
        stream(stub, "b") as two,
    ):
        await one.submit(1, [1, 2, 3], 5)
        await two.submit(1, [4, 5, 6], 5)
        assert await one.finish(1) == expected(worker, [1, 2, 3], 5)
        assert await two.finish(1) == expected(worker, [4, 5, 6], 5)


async def test_cancel_ends_within_a_step() -> None:
    steps = {"sim": {"timing": {"step_s": 0.2}}}
    async with sim_worker(**steps) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await gateway.submit(1, range(50), ENDLESS, choices=2)
        await gateway.until(1, 1)
        await gateway.send(cancel=pb.Cancel(handle=1))
        before = worker.scheduler.totals.steps
        assert (await gateway.end(1)).reason == pb.Ending.CANCELLED
        assert (await gateway.end(1, 1)).reason == pb.Ending.CANCELLED
        assert worker.scheduler.totals.steps - before <= 4  # the message itself takes a moment
        await gateway.send(cancel=pb.Cancel(handle=1))
        await gateway.send(cancel=pb.Cancel(handle=99))
        await idle(worker)


async def test_deadline() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        began = time.monotonic()
        await gateway.submit(1, range(50), ENDLESS, deadline_s=0.3)
        assert (await gateway.end(1)).reason == pb.Ending.DEADLINE
        assert 0.25 < time.monotonic() - began < 60
        assert gateway.tokens[1, 0]


async def test_stop_id_is_named() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        ids = expected(worker, [1, 2, 3], 5)
        await gateway.submit(1, [1, 2, 3], 5, stop_ids=packed(ids[2:3]))
        assert await gateway.finish(1) == ids[:2]
        assert gateway.endings[1, 0] == pb.Ending(reason=pb.Ending.STOP, stop_id=ids[2])
        await gateway.submit(2, [1, 2, 3], 5, stop_ids=packed(ids[2:3]), ignore_eos=True)
        assert await gateway.finish(2) == ids


# ---- bad input -----------------------------------------------------------------------------------


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
    monkeypatch.setattr(sessions, "_INCOMING_BYTES", 100)
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        half = pb.Submit(handle=1, prompt_tokens=20, token_ids=packed(range(10)))
        await gateway.send(submit=half)
        await gateway.submit(2, range(10), 1)
        assert (await gateway.end(2)).reason == pb.Ending.REJECTED
        await gateway.send(cancel=pb.Cancel(handle=1))
        assert (await gateway.end(1)).reason == pb.Ending.CANCELLED
        await gateway.submit(3, range(10), 1)
        assert (await gateway.end(3)).reason == pb.Ending.LENGTH


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


# ---- breaks --------------------------------------------------------------------------------------


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


# ---- drain and health ----------------------------------------------------------------------------


async def test_drain_finishes_what_runs_and_admits_nothing() -> None:
    async with sim_worker(**SLOW) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        await gateway.submit(1, range(5), 30)
        await gateway.submit(2, range(5), ENDLESS)
        await gateway.until(2, 1)
        drained = asyncio.create_task(_drain(stub, 1.0))
        await gateway.end(1)
        await gateway.submit(3, range(5), 1)
        assert (await gateway.end(3)).reason == pb.Ending.REJECTED
        assert await drained == 1
        assert await gateway.finish(1) == expected(worker, range(5), 30)
        await gateway.send(cancel=pb.Cancel(handle=2))
        assert await _drain(stub, 5.0) == 0
        async with connect(worker.grpc_address) as channel:
            health = await HealthStub(channel).Check(HealthCheckRequest(service="warmfleet.v1.Worker"))
            assert health.status == HealthCheckResponse.NOT_SERVING
        assert (await stub.Status(pb.StatusRequest())).load.draining


async def _drain(stub: object, deadline_s: float) -> int:
    response = await stub.Drain(pb.DrainRequest(deadline_s=deadline_s))  # type: ignore[attr-defined]
    return int(response.unfinished)


async def test_status_tells_what_a_router_needs() -> None:
    async with sim_worker(name="w1", served_name="tiny", total_blocks=100) as worker, stub_of(worker) as stub:
        status = await stub.Status(pb.StatusRequest())
        assert (status.worker, status.model, status.engine) == ("w1", "tiny", "sim")
        assert (status.block_size, status.total_blocks, status.max_context) == (16, 100, 1600)
        assert (status.vocab_size, len(status.model_fingerprint)) == (32_000, 32)
        assert status.epoch == worker.presence.epoch != 0
        assert status.load.free_blocks == 100


async def test_metrics_and_health_over_http() -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        for handle in (1, 2):
            await gateway.submit(handle, range(64), 10)
            await gateway.end(handle)
        async with aiohttp.ClientSession(f"http://{worker.http_address}") as http:
            async with http.get("/metrics") as response:
                lines = (await response.text()).splitlines()
            async with http.get("/health") as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})
            await worker.drain(1)
            async with http.get("/health") as response:
                assert (response.status, await response.json()) == (503, {"status": "draining"})
        for line in (
            "warmfleet_worker_prompt_tokens_total 128.0",
            "warmfleet_worker_cached_tokens_total 63.0",
            "warmfleet_worker_completion_tokens_total 20.0",
            'warmfleet_worker_endings_total{reason="length"} 2.0',
            "warmfleet_worker_prefill_seconds_count 2.0",
        ):
            assert line in lines


# ---- an engine that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
async def test_step_that_fails_is_made_again(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        worker.runner.engine.depth = depth
        launch, calls = worker.runner.engine.launch, itertools.count(1)

        def shaky(plan: Plan) -> Finish:
            call = next(calls)
            if call == 1 or (len(plan.works) > 1 and call % 3 == 0):
                raise MemoryError("out of memory")
            return launch(plan)

        monkeypatch.setattr(worker.runner.engine, "launch", shaky)
        for handle in (1, 2):
            await gateway.submit(handle, range(40 * handle), 12, temperature=1.0, seed=handle)
        for handle in (1, 2):
            wanted = expected(worker, range(40 * handle), 12, temperature=1.0, seed=handle)
            assert await gateway.finish(handle) == wanted
        assert worker.scheduler.totals.failed_steps
        await idle(worker)


async def test_engine_that_always_fails_fails_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sim_worker() as worker, stub_of(worker) as stub, stream(stub) as gateway:
        with monkeypatch.context() as broken:
            broken.setattr(worker.runner.engine, "launch", lambda plan: 1 / 0)
            for handle in (1, 2):
                await gateway.submit(handle, range(40), 5)
            for handle in (1, 2):
                ending = await gateway.end(handle)
                assert (ending.reason, ending.message) == (
                    pb.Ending.FAILED,
                    "the engine failed: ZeroDivisionError",
                )
        await gateway.submit(3, range(40), 5)
        assert await gateway.finish(3) == expected(worker, range(40), 5)
        await idle(worker)
