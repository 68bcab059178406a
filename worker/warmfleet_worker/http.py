"""The worker's HTTP port: /health and /metrics."""

from aiohttp import web
from warmfleet_proto.limits import BODY_BYTES

from warmfleet_worker.metrics import Metrics
from warmfleet_worker.runner import Runner


def application(runner: Runner, metrics: Metrics, *others: web.RouteDef) -> web.Application:
    """``others``: routes that the engine brings."""

    async def health(_: web.Request) -> web.Response:
        if runner.scheduler.draining:
            return web.json_response({"status": "draining"}, status=503)
        return web.json_response({"status": "ok"})

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), content_type="text/plain", charset="utf-8")

    app = web.Application(client_max_size=BODY_BYTES)
    app.add_routes([web.get("/health", health), web.get("/metrics", show_metrics), *others])
    return app


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serves until the returned runner's cleanup; the port is what was bound. Raises OSError."""
    server = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await server.setup()
    try:
        await web.TCPSite(server, host, port).start()
    except OSError:
        await server.cleanup()
        raise
    return server, server.addresses[0][1]
