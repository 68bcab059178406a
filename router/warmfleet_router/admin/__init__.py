"""The admin page and its JSON: each worker's cache hit rate, and why each request went where it went.

It shows every tenant's traffic. It shares the gateway's port on loopback only.
"""

from collections.abc import Callable
from typing import Any, Protocol

from aiohttp import web
from warmfleet_proto.channel import is_loopback

from warmfleet_router.admin import figures, pages
from warmfleet_router.view import Counters, PlacementView, Totals, WorkerView

PLACEMENTS = 100


class Source(Protocol):
    """What the page shows of the router core. ``now`` is monotonic seconds."""

    counters: Counters

    def workers(self, now: float) -> list[WorkerView]: ...
    def placements(self, limit: int) -> list[PlacementView]: ...
    def totals(self, now: float) -> Totals: ...


def allowed(address: str) -> bool:
    """Whether the admin page may share the port of ``address``; elsewhere it needs an address of its own."""
    return is_loopback(address)


def routes(core: Source, clock: Callable[[], float]) -> list[web.RouteDef]:
    """GET routes under /admin; ``clock`` is the monotonic clock that feeds ``core``."""
    started = clock()

    async def workers(request: web.Request) -> web.Response:
        now = clock()
        views = core.workers(now)
        fleet = figures.fleet(core.totals(now), views, core.counters.placements, now - started)
        return pages.json(request, {"fleet": fleet, "workers": [figures.worker(view) for view in views]})

    async def placements(request: web.Request) -> web.Response:
        return pages.json(request, {"placements": latest()})

    async def explain(request: web.Request) -> web.Response:
        wanted = request.query.get("request_id", "")
        found = [entry for entry in latest() if entry["request_id"] == wanted]
        if not found:
            reason = f"request_id: none of the last {PLACEMENTS} placements has it"
            return pages.json(request, {"error": {"message": reason}}, status=404)
        return pages.json(request, {"placements": found})

    def latest() -> list[dict[str, Any]]:
        now = clock()
        return [figures.placement(view, now) for view in core.placements(PLACEMENTS)]

    return [
        web.get("/admin/workers", workers),
        web.get("/admin/placements", placements),
        web.get("/admin/explain", explain),
        *pages.routes(),
    ]
