"""The admin page and its JSON: each worker's cache hit rate, and why each request went where it went.

It shows every tenant's traffic. It shares the gateway's port on loopback only.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from aiohttp import web
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import TOKEN_BYTES

from warmfleet_router.admin import figures, pages
from warmfleet_router.discovery import SourceView
from warmfleet_router.moving.moves import Moves
from warmfleet_router.view import Counters, PlacementView, Totals, WorkerView

PLACEMENTS = 100


class Source(Protocol):
    """What the page shows of the router core. ``now`` is monotonic seconds."""

    counters: Counters
    moves: Moves

    def workers(self, now: float) -> list[WorkerView]: ...
    def placements(self, limit: int) -> list[PlacementView]: ...
    def totals(self, now: float) -> Totals: ...
    def recall(self, request_id: str, booking: int) -> list[tuple[PlacementView, pb.Explanation]]: ...
    def explain(self, request: pb.RouteRequest, now: float) -> pb.Explanation: ...


class Setting(NamedTuple):
    """What the router was told, beside what it has seen."""

    sources: Callable[[], Sequence[SourceView]]  # where workers are found
    aliases: Mapping[str, Mapping[str, float]]  # weights of the models behind each


_NOTHING = Setting(list, {})
Supposed = Callable[[web.Request], Awaitable[list[pb.RouteRequest]]]


def routes(
    core: Source, clock: Callable[[], float], supposed: Supposed, setting: Setting = _NOTHING
) -> list[web.RouteDef]:
    """Under /admin; ``clock`` is the monotonic clock that feeds ``core``, ``supposed`` what a request would
    ask of it."""
    started = clock()

    async def workers(request: web.Request) -> web.Response:
        now = clock()
        views = core.workers(now)
        fleet = figures.fleet(core.totals(now), views, core.counters.placements, now - started)
        shown = {"fleet": fleet, "workers": [figures.worker(view) for view in views]}
        return pages.json(request, shown | figures.setting(setting.sources(), setting.aliases))

    async def placements(request: web.Request) -> web.Response:
        return pages.json(request, {"placements": latest()})

    async def pulls(request: web.Request) -> web.Response:
        return pages.json(request, figures.pulls(core.moves))

    async def explain(request: web.Request) -> web.Response:
        """A placement of late, by ``?request_id=`` or ``?booking=``."""
        pages.check_host(request)
        found = core.recall(request.query.get("request_id", ""), _booking(request.query.get("booking")))
        if not found:
            reason = f"request_id, booking: none of the last {PLACEMENTS} placements has it"
            return pages.json(request, {"error": {"message": reason}}, status=404)
        now = clock()
        explanations = [
            figures.placement(view, now) | figures.explanation(explained, view.prompt_tokens)
            for view, explained in found
        ]
        return pages.json(request, {"explanations": explanations})

    async def suppose(request: web.Request) -> web.Response:
        """A request that is not made: its body as the API takes it, or its keys."""
        pages.check_host(request)
        asks = await supposed(request)
        explanations = [
            figures.explanation(
                core.explain(ask, clock()), ask.prompt_tokens or len(ask.token_ids) // TOKEN_BYTES
            )
            for ask in asks
        ]
        return pages.json(request, {"explanations": explanations})

    def latest() -> list[dict[str, Any]]:
        now = clock()
        return [figures.placement(view, now) for view in core.placements(PLACEMENTS)]

    return [
        web.get("/admin/workers", workers),
        web.get("/admin/placements", placements),
        web.get("/admin/pulls", pulls),
        web.get("/admin/explain", explain),
        web.post("/admin/explain", suppose),
        *pages.routes(),
    ]


def _booking(text: str | None) -> int:
    """16 hex digits, as the page shows them; 0, which no booking has, for none."""
    try:
        return int(text or "0", 16)
    except ValueError:
        raise BadRequest(f"booking: {text!r} is no hexadecimal number", "booking") from None
