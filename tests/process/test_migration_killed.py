"""SIGKILL of the source or the target at every step of a migration, with real processes.

The request completes at whoever lives, and what a dead peer had pinned is free again within the lease's TTL.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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

from tests.process.dying_worker import LEASE_TTL_S, STEPS
from tests.process.gateway import Stream, packed

FLEET_KEY = bytes(range(32))
PROMPT = list(range(500))
NOTICED_S = 30.0  # after the TTL, on a machine that does something else


@dataclass
class Process:
    name: str
    process: "subprocess.Popen[str]"
    said: dict[str, Any]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def pinned(self) -> int:
        with urllib.request.urlopen(f"http://{self.said['http']}/metrics", timeout=60) as response:
            text = response.read().decode()
        found = re.search(r'^warmfleet_worker_blocks\{state="pinned"\} (\S+)$', text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


@contextlib.contextmanager
def worker(folder: Path, name: str, step: str) -> Iterator[Process]:
    key = folder / f"{name}.key"
    key.write_text(source_key(FLEET_KEY, name).hex())
    settings = [f"name={name}", "engine=sim", "sim.instant=true", f"transfer.key_file={key}"]
    flags = [part for setting in settings for part in ("--set", setting)]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.dying_worker", step, *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    assert process.stdout is not None
    try:
        yield Process(name, process, json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@asynccontextmanager
async def talking(to: Process) -> AsyncIterator[tuple[Any, Stream]]:
    async with connect(to.said["grpc"]) as channel:
        stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
        gateway = Stream(stub, "gateway", {})
        await gateway.open()
        try:
            yield stub, gateway
        finally:
            await gateway.close()


async def pull_of(source: Process, status: pb.StatusResponse) -> Pull:
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


@pytest.mark.parametrize("step", ["none", *STEPS])
async def test_killed_at_a_step(tmp_path: Path, step: str) -> None:
    end = step.partition(" ")[0]
    with (
        worker(tmp_path, "a", step if end == "source" else "none") as source,
        worker(tmp_path, "b", step if end == "target" else "none") as target,
    ):
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
        await balanced(survivor)
        assert survivor.alive


async def dead(which: Process) -> None:
    assert await asyncio.to_thread(which.process.wait, 60) == -9


async def balanced(which: Process) -> None:
    """Nothing is pinned any more when the longest lease that there can be has ended."""
    until = time.monotonic() + LEASE_TTL_S + NOTICED_S
    while await asyncio.to_thread(which.pinned):
        assert time.monotonic() < until, "a pin outlived its lease"
        await asyncio.sleep(0.05)
