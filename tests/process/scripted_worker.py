"""A worker whose answers a test dictates: real gRPC, no engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from warmfleet_proto import channel, worker_pb2_grpc
from warmfleet_proto.worker_pb2 import (
    Ending,
    Output,
    ServeRequest,
    ServeResponse,
    Started,
    StatusRequest,
    StatusResponse,
)


def pack(*ids: int) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in ids)


def unpack(packed: bytes) -> list[int]:
    return [int.from_bytes(packed[i : i + 4], "little") for i in range(0, len(packed), 4)]


def output(handle: int, position: int, *ids: int, end: "Ending.Reason | None" = None) -> Output:
    made = Output(handle=handle, position=position, token_ids=pack(*ids))
    if position == 0:
        made.started.CopyFrom(Started(cached_tokens=0))
    if end is not None:
        made.ending.CopyFrom(Ending(reason=end, message="scripted"))
    return made


class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    """``received`` yields what a gateway wrote; ``say`` answers on the latest stream."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[ServeRequest] = asyncio.Queue()
        self.streams = 0
        self.asked: asyncio.Queue[None] = asyncio.Queue()  # for its status
        self.answers = asyncio.Event()  # such a question
        self.answers.set()
        self._answers: asyncio.Queue[ServeResponse | None] = asyncio.Queue()

    async def Serve(self, requests: Any, context: Any) -> AsyncIterator[ServeResponse]:
        self.streams += 1
        await context.send_initial_metadata(())
        answers = self._answers = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await context.abort(grpc.StatusCode.UNAVAILABLE, "hung up")
        finally:
            reader.cancel()

    async def Status(self, request: StatusRequest, context: Any) -> StatusResponse:
        self.asked.put_nowait(None)
        await self.answers.wait()
        return StatusResponse()

    async def _read(self, requests: Any) -> None:
        async for request in requests:
            self.received.put_nowait(request)

    async def next(self, body: str) -> Any:
        """The next message written, which must be a ``body``."""
        async with asyncio.timeout(60):
            request = await self.received.get()
        assert request.WhichOneof("body") == body
        return getattr(request, body)

    def say(self, *outputs: Output) -> None:
        self._answers.put_nowait(ServeResponse(outputs=outputs))

    def hang_up(self) -> None:
        self._answers.put_nowait(None)


@asynccontextmanager
async def serving(worker: ScriptedWorker, port: int = 0) -> AsyncIterator[str]:
    """The address of ``worker``; leaving the context is a crash: every stream breaks at once."""
    server, _ = channel.server([])
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    bound = channel.bind(server, f"127.0.0.1:{port}", None)
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
