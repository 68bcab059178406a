"""Workers that die or end and come back to what their disk holds: the sim engine killed at any moment, and
the real model, whose answers must be those of a cold run."""

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from warmfleet_proto.channel import connect
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_proto.worker_pb2 import StatusRequest
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_worker.config import Config
from warmfleet_worker.engine.factory import make_engine
from warmfleet_worker.engine.sim import oracle
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.worker import Worker

from tests.model import demo_model_path
from tests.process.fleet import sim_worker
from tests.process.gateway import Stream, expected, packed, stream, stub_of
from tests.process.programs import ANY, get, program, until
from tests.process.test_tiers import settled
from tests.unit.tiers.test_kv_command import kv

REAL = {
    "engine": "torch", "model": str(demo_model_path()), "dtype": "float32", "device": "cpu",
    "total_blocks": 60,
}  # fmt: skip
PROMPT = list(range(100, 501))


def metric(address: str, name: str) -> float:
    lines = get(f"http://{address}/metrics").decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


async def finish(address: str, prompt: list[int]) -> tuple[list[int], Any, list[int]]:
    """The tokens, what was said at the start, and what the oracle says."""
    async with connect(address) as channel:
        stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
        status = await stub.Status(StatusRequest())
        async with stream(stub) as gateway:
            await gateway.submit(1, prompt, 8)
            tokens = await gateway.finish(1)
            root = root_hash(status.model_fingerprint, status.block_size)
            return tokens, gateway.started[1], oracle(root, prompt, 8, vocab_size=status.vocab_size)


async def test_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL while prompts are written to the disk, three times over."""
    logs = tmp_path / "logs"
    logs.mkdir()
    settings: dict[str, Any] = {
        "engine": "sim", "listen": ANY, "http": ANY, "sim__timing__prefill_token_s": 0.002,
        "disk_path": str(tmp_path / "kv"), "disk_bytes": 1 << 26, "total_blocks": 200,
    }  # fmt: skip
    rng, held = random.Random(3), 0.0
    for generation in range(4):
        with program(logs, "worker", **settings) as worker:
            http, grpc = worker.said["http"], worker.said["grpc"]
            disk = metric(http, 'warmfleet_worker_tier_blocks{tier="disk"}')
            assert disk >= held
            tokens, started, wanted = await finish(grpc, PROMPT)
            assert tokens == wanted
            assert started.disk_tokens == (400 if generation else 0)
            until(lambda: metric(http, 'warmfleet_worker_tier_blocks{tier="disk"}') >= 25)  # noqa: B023
            held = metric(http, 'warmfleet_worker_tier_blocks{tier="disk"}')
            with contextlib.suppress(Exception):
                await finish(grpc, [generation, *(rng.randrange(1000) for _ in range(300))])
            worker.kill()


async def test_a_prefix_is_carried_to_another_worker_as_a_file(tmp_path: Path) -> None:
    async def ask(folder: Path) -> Any:
        settings: dict[str, Any] = {"disk_path": str(folder), "disk_bytes": 1 << 26}
        timing = {"prefill_token_s": 0.002}
        async with (
            sim_worker(sim={"timing": timing}, **settings) as worker,
            stub_of(worker) as stub,
            stream(stub) as gateway,
        ):
            await gateway.submit(1, PROMPT, 4)
            assert await gateway.finish(1) == expected(worker, PROMPT, 4)
            await settled(worker)
            root = root_hash(worker.runner.engine.fingerprint, 16)
            return gateway.started[1].disk_tokens, chain(root, packed(PROMPT), 16)[-1].hex()

    cold, last = await ask(tmp_path / "one")
    kv("export", tmp_path / "one", last, tmp_path / "prefix.wfkv")
    kv("import", tmp_path / "two", tmp_path / "prefix.wfkv")
    warm, _ = await ask(tmp_path / "two")
    assert (cold, warm) == (0, 400)


@asynccontextmanager
async def real_worker(engine: TorchEngine, **settings: Any) -> AsyncIterator[tuple[Worker, Stream]]:
    """As after a start: nothing is known of what the pool holds, and it holds nothing."""
    engine.pool.zero_()
    worker = Worker(msgspec.convert({**REAL, **settings}, Config), engine)
    await worker.start()
    try:
        async with stub_of(worker) as stub, stream(stub) as gateway:
            yield worker, gateway
    finally:
        await worker.close()


async def test_the_real_model_answers_from_its_disk_as_from_scratch(tmp_path: Path) -> None:
    """Greedy tokens equal, log-probabilities within 1e-4 (fp32), after a restart and after an eviction."""
    prompt = [int(n) for n in np.random.default_rng(5).integers(100, 40_000, 200)]
    tiers = {"disk_path": str(tmp_path), "disk_bytes": 1 << 30, "host_bytes": 1 << 28}
    engine = make_engine(msgspec.convert(REAL, Config))
    assert isinstance(engine, TorchEngine)
    async with real_worker(engine) as (_, gateway):
        await gateway.submit(1, prompt, 6, logprobs=5)
        cold = await gateway.finish(1), gateway.logprobs[1, 0]
    async with real_worker(engine, **tiers) as (worker, gateway):
        await gateway.submit(1, prompt, 6)
        assert await gateway.finish(1) == cold[0]
        await settled(worker)
    async with real_worker(engine, **tiers) as (worker, gateway):
        await gateway.submit(1, prompt, 6, logprobs=5)
        assert await gateway.finish(1) == cold[0]
        assert gateway.started[1].disk_tokens == 192
        check_scores(gateway.logprobs[1, 0], cold[1])
        await settled(worker)
        cache = worker.scheduler.cache
        cache.release(cache.allocate(cache.available) or [])  # the device loses all of it
        await gateway.submit(2, prompt, 6, logprobs=5)
        assert await gateway.finish(2) == cold[0]
        assert gateway.started[2].host_tokens == 192
        check_scores(gateway.logprobs[2, 0], cold[1])


def check_scores(found: list[Any], wanted: list[Any]) -> None:
    assert [each.top_ids for each in found] == [each.top_ids for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert list(one.top_logprobs) == pytest.approx(list(other.top_logprobs), abs=1e-4)
