"""The worker as a program: ready line, service, graceful end, and configurations that it refuses."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.worker_pb2_grpc import WorkerStub

from tests.process.gateway import stream

COMMAND = (sys.executable, "-m", "warmfleet_worker", "--engine", "sim")


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    said: dict[str, Any] = json.loads(await process.stdout.readline())
    return said


async def test_ready_serves_and_ends_with_sigterm() -> None:
    async with program("--name", "w7", "--set", "sim.timing.step_s=0.005") as process:
        said = await ready(process)
        assert (said["ready"], said["worker"]) == (True, "w7")
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{said['http']}/health") as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})
            async with connect(said["grpc"]) as channel:
                stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
                async with stream(stub) as gateway:
                    await gateway.submit(1, range(64), 100)
                    await gateway.until(1, 1)
                    watch = stub.WatchKv(pb.WatchKvRequest())
                    await watch.read()
                    process.send_signal(signal.SIGTERM)
                    assert len(await gateway.finish(1)) == 100  # what runs may end
                    assert await asyncio.wait_for(process.wait(), 60) == 0
                    watch.cancel()


async def test_unfinished_requests_do_not_hold_it() -> None:
    async with program("--set", "drain_s=0.2", "--set", "sim.timing.step_s=0.005") as process:
        said = await ready(process)
        async with connect(said["grpc"]) as channel:
            stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
            async with stream(stub) as gateway:
                await gateway.submit(1, range(64), 50_000)
                await gateway.until(1, 1)
                process.send_signal(signal.SIGINT)
                assert await asyncio.wait_for(process.wait(), 60) == 0
