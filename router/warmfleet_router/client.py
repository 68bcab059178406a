"""How a gateway asks the router: one interface, in process or over gRPC."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import router_pb2_grpc
from warmfleet_proto.errors import BadRequest, Corrupt, Rejected, WarmfleetError, WorkerLost

from warmfleet_router.core import RouterCore

CALL_TIMEOUT_S = 5.0

# Trailing metadata that carries what an error knows beyond its code and message.
FIELD = "warmfleet-field"
STATUS = "warmfleet-status"
RETRY_AFTER = "warmfleet-retry-after"

T = TypeVar("T")


class Router(Protocol):
    """Every method raises BadRequest or Rejected as the router decides; a router out of reach is Rejected."""

    async def route(self, request: pb.RouteRequest) -> pb.Placement: ...
    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse: ...
    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse: ...
    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse: ...
    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse: ...
    async def explain(self, request: pb.RouteRequest) -> pb.Explanation: ...


class LocalRouter:
    """The router in this process. ``clock`` is monotonic seconds, the same that feeds the core elsewhere."""

    def __init__(self, core: RouterCore, clock: Callable[[], float]) -> None:
        self._core = core
        self._clock = clock

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        return self._core.route(request, self._clock())

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        return self._core.progress(request, self._clock())

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        return self._core.finish(request, self._clock())

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return self._core.heartbeat(request, self._clock())

    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        return self._core.list_workers(request, self._clock())

    async def explain(self, request: pb.RouteRequest) -> pb.Explanation:
        return self._core.explain(request, self._clock())


class RemoteRouter:
    """The router at the other end of ``channel``; the caller closes the channel."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._stub: Any = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        return await _translated(self._stub.Route(request, timeout=self._timeout_s))

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        return await _translated(self._stub.Progress(request, timeout=self._timeout_s))

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        return await _translated(self._stub.Finish(request, timeout=self._timeout_s))

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return await _translated(self._stub.Heartbeat(request, timeout=self._timeout_s))

    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        return await _translated(self._stub.ListWorkers(request, timeout=self._timeout_s))

    async def explain(self, request: pb.RouteRequest) -> pb.Explanation:
        return await _translated(self._stub.Explain(request, timeout=self._timeout_s))


async def _translated(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_status(error) from None


def from_status(error: grpc.aio.AioRpcError) -> WarmfleetError:
    """The exception that the other end raised, or Rejected when it could not be asked."""
    metadata: Any = error.trailing_metadata() or ()
    known = {str(key): str(value) for key, value in metadata}
    message = error.details() or "the router did not answer"
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return BadRequest(message, known.get(FIELD), int(known.get(STATUS, "400")))
        case grpc.StatusCode.ABORTED:
            return WorkerLost(message)
        case grpc.StatusCode.DATA_LOSS:
            return Corrupt(message)
        case grpc.StatusCode.UNAVAILABLE if RETRY_AFTER in known:
            return Rejected(message, float(known[RETRY_AFTER]), int(known.get(STATUS, "503")))
        case code:
            return Rejected(f"the router cannot be asked ({code.name.lower()}): {message}")
