"""What a server is asked of itself."""

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.discovery import Probe


async def test_a_server_that_sends_elsewhere_is_not_followed() -> None:
    """Neither are requests: what is behind it has not been configured."""
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/internal"})

    app = web.Application()
    app.add_routes([web.get("/{any:.*}", elsewhere)])
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        probe = Probe(Backend(url=str(server.make_url(""))), session)
        with pytest.raises(WorkerLost, match="answers 302"):
            await probe.names()
    assert asked == ["/v1/models"]
