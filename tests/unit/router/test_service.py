"""The edges of the gRPC service that a real channel does not show."""

from typing import Any

import grpc
import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.errors import BadRequest, Corrupt, Rejected, WarmfleetError, WorkerLost
from warmfleet_router.client import LocalRouter, from_status
from warmfleet_router.service import RouterService

from tests.unit.router.fleet_of import ask, fleet_of, tokens


class Aborted(Exception):
    pass


class Context:
    def __init__(self, remaining: float | None) -> None:
        self.remaining = remaining
        self.status: tuple[Any, ...] = ()

    def time_remaining(self) -> float | None:
        return self.remaining

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        self.status = code, details, trailing_metadata
        raise Aborted


async def test_a_call_without_time_left_books_nothing() -> None:
    core, _ = fleet_of(1)
    service = RouterService(LocalRouter(core, lambda: 0.0))
    context = Context(0.0)
    with pytest.raises(Aborted):
        await service.Route(ask(tokens((1, 20))), context)  # type: ignore[arg-type]
    assert context.status[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert core.totals(0.0).bookings == 0
    await service.Route(ask(tokens((1, 20))), Context(None))  # type: ignore[arg-type]
    assert core.totals(0.0).bookings == 1


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("what", "field", 413),
        BadRequest("what"),
        Rejected("full", 2.5, 429),
        WorkerLost("gone"),
        Corrupt("bytes"),
    ],
)
async def test_errors_survive_the_wire(error: WarmfleetError) -> None:
    class Failing:
        async def heartbeat(self, request: rpb.HeartbeatRequest) -> rpb.HeartbeatResponse:
            raise error

    failing: Any = Failing()
    failing.route = failing.progress = failing.finish = failing.list_workers = failing.explain = None
    context: Any = Context(1.0)
    with pytest.raises(Aborted):
        await RouterService(failing).Heartbeat(rpb.HeartbeatRequest(), context)
    code, details, metadata = context.status
    back = from_status(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details))
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("field", "status", "retry_after"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_any_other_failure_is_a_router_that_cannot_be_asked() -> None:
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, "connection refused")
    assert isinstance(from_status(error), Rejected)
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, empty, empty, "boom")
    assert isinstance(from_status(error), Rejected)
