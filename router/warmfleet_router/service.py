"""The Router service over gRPC: what ``LocalRouter`` offers in process, for gateways elsewhere."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import router_pb2_grpc
from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, grpc_status

from warmfleet_router.client import FIELD, RETRY_AFTER, STATUS, Router

Q = TypeVar("Q")
A = TypeVar("A")
Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(router_pb2_grpc.RouterServicer):
    """A call whose deadline has passed is not made: nobody would end its booking."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.Placement:  # noqa: N802
        return await _call(self._router.route, request, context)

    async def Progress(self, request: pb.ProgressRequest, context: Context) -> pb.ProgressResponse:  # noqa: N802
        return await _call(self._router.progress, request, context)

    async def Finish(self, request: pb.FinishRequest, context: Context) -> pb.FinishResponse:  # noqa: N802
        return await _call(self._router.finish, request, context)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:  # noqa: N802
        return await _call(self._router.heartbeat, request, context)

    async def ListWorkers(  # noqa: N802
        self, request: pb.ListWorkersRequest, context: Context
    ) -> pb.ListWorkersResponse:
        return await _call(self._router.list_workers, request, context)

    async def Explain(self, request: pb.RouteRequest, context: Context) -> pb.Explanation:  # noqa: N802
        return await _call(self._router.explain, request, context)


async def _call(method: Callable[[Q], Awaitable[A]], request: Q, context: Context) -> A:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
    try:
        return await method(request)
    except WarmfleetError as error:
        await _abort(error, context)


async def _abort(error: WarmfleetError, context: Context) -> NoReturn:
    await context.abort(grpc_status(error), str(error), trailing_metadata=_metadata(error))
    raise AssertionError("abort raises")


def _metadata(error: WarmfleetError) -> tuple[tuple[str, str], ...]:
    match error:
        case BadRequest():
            status = (STATUS, str(error.status))
            return (status, (FIELD, error.field)) if error.field else (status,)
        case Rejected():
            return (STATUS, str(error.status)), (RETRY_AFTER, str(error.retry_after))
        case _:
            return ()
