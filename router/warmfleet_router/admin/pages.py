"""How the admin page and its figures leave: static files from the package, strict headers."""

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web
from warmfleet_proto.channel import is_loopback
from warmfleet_proto.settings import ConfigError

_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.Response]]


def routes() -> list[web.RouteDef]:
    """The page with its style, script and icon; /admin leads to it."""
    served = [web.get(f"/admin/{path}", _file(name, kind)) for path, (name, kind) in _FILES.items()]
    return [web.get("/admin", _to_page), *served]


def json(request: web.Request, value: Any, status: int = 200) -> web.Response:
    check_host(request)
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=_HEADERS)


def _file(name: str, kind: str) -> Handler:
    body = resources.files("warmfleet_router.admin").joinpath(name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        check_host(request)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=_HEADERS)

    return serve


async def _to_page(_: web.Request) -> web.Response:
    raise web.HTTPPermanentRedirect("/admin/")


def check_host(request: web.Request) -> None:
    """On loopback only loopback's names are answered: a web page elsewhere that lets its own name resolve
    to 127.0.0.1, or a proxy that publishes the gateway, does not get the admin page."""
    assert request.transport is not None
    local = request.transport.get_extra_info("sockname")[0]
    if is_loopback(f"[{local}]:0") and not _names_loopback(request.host):
        raise web.HTTPForbidden(text="the admin page answers to localhost only\n")


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(host if host.rpartition(":")[2].isdigit() else f"{host}:0")
    except ConfigError:
        return False
