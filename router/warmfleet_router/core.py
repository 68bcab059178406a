"""The router's mind, one object per process: models, index, fleet, prices and bookings.

Pure: messages and ``now`` (monotonic seconds) go in, messages and values come out.
"""

from warmfleet_proto import router_pb2 as pb

from warmfleet_router.view import Counters, PlacementView, Totals, WorkerView


class RouterCore:
    """Raises BadRequest and Rejected where a caller can cause it."""

    counters: Counters

    def route(self, request: pb.RouteRequest, now: float) -> pb.Placement:
        raise NotImplementedError

    def explain(self, request: pb.RouteRequest, now: float) -> pb.Explanation:
        raise NotImplementedError

    def progress(self, request: pb.ProgressRequest, now: float) -> pb.ProgressResponse:
        raise NotImplementedError

    def finish(self, request: pb.FinishRequest, now: float) -> pb.FinishResponse:
        raise NotImplementedError

    def heartbeat(self, request: pb.HeartbeatRequest, now: float) -> pb.HeartbeatResponse:
        raise NotImplementedError

    def list_workers(self, request: pb.ListWorkersRequest, now: float) -> pb.ListWorkersResponse:
        raise NotImplementedError

    def workers(self, now: float) -> list[WorkerView]:
        raise NotImplementedError

    def placements(self, limit: int = 100) -> list[PlacementView]:
        """The latest first."""
        raise NotImplementedError

    def totals(self, now: float) -> Totals:
        raise NotImplementedError
