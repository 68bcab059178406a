"""The Router service over gRPC: what ``LocalRouter`` offers in process, for gateways elsewhere."""

from typing import Any, NoReturn

import grpc
from warmfleet_proto import router_pb2_grpc
from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, grpc_status

from warmfleet_router.client import FIELD, RETRY_AFTER, STATUS, Router

Context = grpc.aio.ServicerContext[Any, Any]


def _served(name: str) -> Any:
    """The call that the router's method of that name answers."""

    async def call(self: "RouterService", request: Any, context: Context) -> Any:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
        try:
            return await getattr(self.router, name)(request)
        except WarmfleetError as error:
            await _abort(error, context)

    return call


class RouterService(router_pb2_grpc.RouterServicer):
    """A call whose deadline has passed is not made: nobody would end its booking."""

    def __init__(self, router: Router) -> None:
        self.router = router

    Route = _served("route")
    Progress = _served("progress")
    Finish = _served("finish")
    Heartbeat = _served("heartbeat")
    ListWorkers = _served("list_workers")
    Explain = _served("explain")


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
