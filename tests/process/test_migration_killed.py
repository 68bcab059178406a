"""SIGKILL of the source or the target at every step of a migration, with real processes.

The request completes at whoever lives, and what a dead peer had pinned is free again within the lease's TTL.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.grant import source_key
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_proto.transfer_pb2 import Claims, Pull
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_router.grant import Granter
from warmfleet_worker.engine.sim import oracle

from tests.process.deadly import LEASE_TTL_S, STEPS
from tests.process.exchange import FLEET_KEY
from tests.process.gateway import Stream, packed
from tests.process.programs import ANY, Program, metric, program, until

PROMPT = list(range(500))
NOTICED_S = 30.0  # after the TTL, on a machine that does something else
IN_CI = ("source transfer", "target transfer")
DEATHS = [
    pytest.param(step, marks=() if step in IN_CI else pytest.mark.nightly)
    for step in ("none", *STEPS)
    if not step.startswith("router")
]


def worker(folder: Path, name: str, step: str) -> AbstractContextManager[Program]:
    key = folder / f"{name}.key"
    key.write_text(source_key(FLEET_KEY, name).hex())
    module = ("tests.process.deadly", step, str(folder))
    settings = {"sim__instant": True, "transfer__key_file": str(key)}
    return program(folder, "worker", None, module, name=name, engine="sim", http=ANY, listen=ANY, **settings)


@asynccontextmanager
async def talking(to: Program) -> AsyncIterator[tuple[Any, Stream]]:
    async with connect(to.said["grpc"]) as channel:
        stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
        gateway = Stream(stub, "gateway", {})
        await gateway.open()
        try:
            yield stub, gateway
        finally:
            await gateway.close()


async def pull_of(source: Program, status: pb.StatusResponse) -> Pull:
    hashes = chain(root_hash(status.model_fingerprint, status.block_size), packed(PROMPT), status.block_size)
    claims = Claims(
        source="a",
        target="b",
        epoch=status.epoch,
        root=root_hash(status.model_fingerprint, status.block_size),
        keys=keys(hashes),
        expires_s=status.load.clock_s + 100,
    )
    grant = Granter(FLEET_KEY).grant(claims)
    tokens = len(hashes) * status.block_size
    return Pull(source="a", address=source.said["grpc"], tokens=tokens, within_s=60.0, grant=grant)


@pytest.mark.parametrize("step", DEATHS)
async def test_killed_at_a_step(tmp_path: Path, step: str) -> None:
    end = step.partition(" ")[0]
    with worker(tmp_path, "a", step) as source, worker(tmp_path, "b", step) as target:
        async with talking(source) as (stub, at_source), talking(target) as (_, at_target):
            status = await stub.Status(pb.StatusRequest())
            right = oracle(root_hash(status.model_fingerprint, status.block_size), PROMPT, 5)
            await at_source.submit(1, PROMPT, 1)
            await at_source.end(1)
            pull = await pull_of(source, status)
            await at_target.submit(1, PROMPT, 5, pull=pull)
            if end == "target":
                await dead(target)
                await at_source.submit(2, PROMPT, 5)  # where a gateway would try again
                assert await at_source.finish(2) == right
            else:
                assert await at_target.finish(1) == right
                assert at_target.started[1].peer_tokens == (496 if step in ("none", "source release") else 0)
        if end == "source":
            await dead(source)
        survivor = source if end == "target" else target
        # Nothing is pinned any more when the longest lease that there can be has ended.
        within_s = LEASE_TTL_S + NOTICED_S
        await asyncio.to_thread(until, lambda: not metric(survivor, 'blocks{state="pinned"}'), within_s)
        assert survivor.alive


async def dead(which: Program) -> None:
    assert await asyncio.to_thread(which.process.wait, 60) == -9
