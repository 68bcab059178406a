"""The Worker service of worker.proto over a runner."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import metadata
from typing import Any

import grpc
from warmfleet_proto.errors import BadRequest, WarmfleetError, grpc_status
from warmfleet_proto.limits import MAX_ID_CHARS
from warmfleet_proto.tasks import cancelled
from warmfleet_proto.worker_pb2 import (
    BringRequest,
    BringResponse,
    DrainRequest,
    DrainResponse,
    Open,
    ServeRequest,
    ServeResponse,
    StatusRequest,
    StatusResponse,
    WatchKvRequest,
)
from warmfleet_proto.worker_pb2_grpc import WorkerServicer

from warmfleet_worker.outbox import Outbox
from warmfleet_worker.runner import Runner
from warmfleet_worker.sessions import Session, Sessions
from warmfleet_worker.watch import Watch, load_of

MAX_DRAIN_S = 3600.0
_PACE_S = 0.002  # between messages: steps quicker than this share one, and nobody can tell

_ServeContext = grpc.aio.ServicerContext[ServeRequest, ServeResponse]


def _version() -> str:
    """The package's version; the code may also run from where it lies, without one."""
    try:
        return metadata.version("warmfleet")
    except metadata.PackageNotFoundError:
        return "unknown"


VERSION = _version()


class WorkerService(WorkerServicer):
    def __init__(
        self,
        name: str,
        model: str,
        runner: Runner,
        drain: Callable[[float], Awaitable[int]],
        bring: Callable[[BringRequest], Awaitable[BringResponse]],
        gives_blocks: bool = False,
    ) -> None:
        self._gives_blocks = gives_blocks
        self._drain = drain
        self._bring = bring
        self._name = name
        self._model = model
        self._runner = runner
        self._sessions = Sessions(runner)

    async def Serve(self, requests: AsyncIterator[ServeRequest], context: _ServeContext) -> None:  # noqa: N802
        try:
            opening = _opening(await anext(requests, None))
            session, outbox = self._sessions.attach(opening)
        except WarmfleetError as error:
            await context.abort(grpc_status(error), str(error))
        tasks: list[asyncio.Task[Any]] = []
        try:
            await context.send_initial_metadata(())  # it has its stream, however long an answer takes
            tasks.append(asyncio.create_task(_read(requests, session, outbox)))
            ends = [asyncio.create_task(_write(outbox, context)), asyncio.create_task(outbox.broken.wait())]
            tasks += ends
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            broken = outbox.broken.is_set()
        finally:
            self._sessions.detach(session, outbox)
            await cancelled(*tasks)
        if broken:
            await context.abort(grpc.StatusCode.ABORTED, outbox.why)

    async def WatchKv(self, request: WatchKvRequest, context: Any) -> None:  # noqa: N802
        async with contextlib.aclosing(Watch(self._runner).messages(request)) as messages:
            async for message in messages:
                await context.write(message)

    async def Status(self, request: StatusRequest, context: Any) -> StatusResponse:  # noqa: N802
        engine, limits = self._runner.engine, self._runner.scheduler.limits
        return StatusResponse(
            worker=self._name,
            epoch=self._runner.presence.epoch,
            model=self._model,
            model_fingerprint=engine.fingerprint,
            layout_fingerprint=engine.layout,
            block_size=engine.block_size,
            total_blocks=engine.total_blocks,
            block_bytes=engine.block_bytes,
            max_context=limits.max_context,
            max_running=limits.max_running,
            engine=engine.name,
            version=VERSION,
            load=load_of(self._runner),
            vocab_size=engine.vocab_size,
            gives_blocks=self._gives_blocks,
            depth=engine.depth,
            chunk_tokens=limits.chunk_tokens,
        )

    async def Bring(self, request: BringRequest, context: Any) -> BringResponse:  # noqa: N802
        try:
            brought = await self._bring(request)
        except WarmfleetError as error:
            await context.abort(grpc_status(error), str(error))
        return brought

    async def Drain(self, request: DrainRequest, context: Any) -> DrainResponse:  # noqa: N802
        if not 0 <= request.deadline_s <= MAX_DRAIN_S:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"deadline_s: expected 0 to {MAX_DRAIN_S:g} seconds"
            )
        return DrainResponse(unfinished=await self._drain(request.deadline_s))

    def close(self) -> None:
        """Ends every stream; what is ready is still written."""
        self._runner.close()
        self._sessions.close()


def _opening(request: ServeRequest | None) -> Open:
    if request is None or request.WhichOneof("body") != "open":
        raise BadRequest("the first message of a stream is Open", "open")
    if not 0 < len(request.open.gateway_id) <= MAX_ID_CHARS:
        raise BadRequest(f"gateway_id: expected 1 to {MAX_ID_CHARS} characters", "gateway_id")
    return request.open


async def _read(requests: AsyncIterator[ServeRequest], session: Session, outbox: Outbox) -> None:
    """Reads until the gateway ends the stream or breaks its rules."""
    async for request in requests:
        match request.WhichOneof("body"):
            case "submit":
                session.submit(request.submit)
            case "prompt":
                session.add(request.prompt)
            case "cancel":
                session.cancel(request.cancel.handle)
            case body:
                outbox.break_off(f"{body or 'an empty message'} is not expected here")
                return
    outbox.close()


async def _write(outbox: Outbox, context: _ServeContext) -> None:
    while (response := await outbox.get()) is not None:
        await context.write(response)
        await asyncio.sleep(_PACE_S)
