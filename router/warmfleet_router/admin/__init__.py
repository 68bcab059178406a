"""The admin page and its JSON: each worker's cache hit rate, and why each request went where it went.

It shows every tenant's traffic. It shares the gateway's port on loopback only.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

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


class Admin:
    """Its ``routes`` are under /admin. ``clock`` is the monotonic clock that feeds ``core``; ``supposed`` is
    what a request would ask of it."""

    def __init__(
        self, core: Source, clock: Callable[[], float], supposed: Supposed, setting: Setting = _NOTHING
    ) -> None:
        self._core = core
        self._clock = clock
        self._supposed = supposed
        self._setting = setting
        self._started = clock()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/admin/workers", self._workers),
            web.get("/admin/placements", self._placements),
            web.get("/admin/pulls", self._pulls),
            web.get("/admin/explain", self._explain),
            web.post("/admin/explain", self._suppose),
            *pages.routes(),
        ]

    async def _workers(self, request: web.Request) -> web.Response:
        core, now, setting = self._core, self._clock(), self._setting
        views = core.workers(now)
        fleet = figures.fleet(core.totals(now), views, core.counters.placements, now - self._started)
        shown = {"fleet": fleet, "workers": [figures.worker(view) for view in views]}
        return pages.json(request, shown | figures.setting(setting.sources(), setting.aliases))

    async def _placements(self, request: web.Request) -> web.Response:
        now = self._clock()
        latest = [figures.placement(view, now) for view in self._core.placements(PLACEMENTS)]
        return pages.json(request, {"placements": latest})

    async def _pulls(self, request: web.Request) -> web.Response:
        return pages.json(request, figures.pulls(self._core.moves))

    async def _explain(self, request: web.Request) -> web.Response:
        """A placement of late, by ``?request_id=`` or ``?booking=``."""
        pages.check_host(request)
        booking = _booking(request.query.get("booking"))
        found = self._core.recall(request.query.get("request_id", ""), booking)
        if not found:
            reason = f"request_id, booking: none of the last {PLACEMENTS} placements has it"
            return pages.json(request, {"error": {"message": reason}}, status=404)
        now = self._clock()
        explanations = [
            figures.placement(view, now) | figures.explanation(explained, view.prompt_tokens)
            for view, explained in found
        ]
        return pages.json(request, {"explanations": explanations})

    async def _suppose(self, request: web.Request) -> web.Response:
        """A request that is not made: its body as the API takes it, or its keys."""
        pages.check_host(request)
        explanations = []
        for ask in await self._supposed(request):
            tokens = ask.prompt_tokens or len(ask.token_ids) // TOKEN_BYTES
            explanations.append(figures.explanation(self._core.explain(ask, self._clock()), tokens))
        return pages.json(request, {"explanations": explanations})


def _booking(text: str | None) -> int:
    """16 hex digits, as the page shows them; 0, which no booking has, for none."""
    try:
        return int(text or "0", 16)
    except ValueError:
        raise BadRequest(f"booking: {text!r} is no hexadecimal number", "booking") from None
