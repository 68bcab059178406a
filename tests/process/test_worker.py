"""A worker over real gRPC on loopback, with the engine that notices wrong KV."""

import asyncio
import itertools
import time

import aiohttp
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from warmfleet_proto import limits
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_worker.engine.base import Finish, Plan

from tests.process.fleet import idle, sim_worker
from tests.process.gateway import ENDLESS, expected, packed, stream, stub_of

SLOW = {"sim": {"timing": {"step_s": 0.005}}}  # a request of ENDLESS tokens outlives any test


# ---- streams ---------------------------------------------------------------------------------------


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
        assert gateway.messages <= worker.scheduler.totals.steps
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


# ---- drain and health ------------------------------------------------------------------------------


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
    served = {"name": "w1", "served_name": "tiny"}
    async with sim_worker(**served, total_blocks=100, chunk_tokens=300) as worker, stub_of(worker) as stub:
        status = await stub.Status(pb.StatusRequest())
        assert (status.worker, status.model, status.engine) == ("w1", "tiny", "sim")
        assert (status.block_size, status.total_blocks, status.max_context) == (16, 100, 1600)
        assert (status.vocab_size, len(status.model_fingerprint)) == (32_000, 32)
        assert status.epoch == worker.presence.epoch != 0
        assert (status.load.free_blocks, status.chunk_tokens, status.depth) == (100, 300, 1)


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


# ---- an engine that fails --------------------------------------------------------------------------


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
