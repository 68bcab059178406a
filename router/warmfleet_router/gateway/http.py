"""The HTTP server under the gateway: bounded, and OpenAI-shaped errors down to the parser's own."""

import asyncio
import logging
import socket
import ssl

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler
from warmfleet_proto.channel import split_address
from warmfleet_proto.errors import Corrupt, WarmfleetError, WorkerLost
from warmfleet_proto.settings import ConfigError

from warmfleet_router.client import Away
from warmfleet_router.gateway import intake
from warmfleet_router.gateway.openai import error_body, error_of

_log = logging.getLogger(__name__)

# A response, and what ended it early if its stream had begun.
Answered = tuple[web.StreamResponse, Exception | None]

REQUEST_ID = web.RequestKey("request_id", str)
_BEGUN = web.RequestKey("begun", bool)  # a response of its own is on its way to the client

_IDLE_S = 10.0  # a new connection without a whole request head
# One that has been used. Clients and proxies keep theirs for a minute: who sends a request just when its
# connection is closed cannot know whether it was served.
_KEPT_S = 75.0
_LINGER_S = 1.0  # for the rest of a body that was refused
_SEND_BUFFER_BYTES = 256 << 10  # the kernel's share of what a client may be behind


class Events(web.StreamResponse):
    """A stream of events. Its headers go out with the first of them: each write wakes the client."""

    _send_headers_immediately = False  # aiohttp's; it offers no setting


def application() -> web.Application:
    """Without routes; errors of every handler become OpenAI bodies, every response names its request."""
    made = web.Application(middlewares=[_errors])
    made.on_response_prepare.append(_sign)
    return made


class Site:
    """``app`` behind one address, from ``start`` until ``close``."""

    def __init__(
        self,
        app: web.Application,
        address: str,
        tls: ssl.SSLContext | None = None,
        drain_s: float = 0,
        reuse_port: bool = False,
    ) -> None:
        self._runner = _Runner(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,  # a client that leaves ends its request
            keepalive_timeout=_KEPT_S,
            lingering_time=_LINGER_S,
            shutdown_timeout=drain_s,
        )
        self._address = address
        self._tls = tls
        self._reuse_port = reuse_port

    async def start(self) -> str:
        """The address that it has got, HOST:PORT. Raises ConfigError when it cannot be had."""
        await self._runner.setup()
        listening = _listen(self._address, self._reuse_port)
        await web.SockSite(self._runner, listening, ssl_context=self._tls).start()
        host, _, _ = self._address.rpartition(":")
        return f"{host}:{listening.getsockname()[1]}"

    async def close(self) -> None:
        """Accepts no more, waits for open requests up to ``drain_s``, then ends them."""
        await self._runner.cleanup()


def told(error: WarmfleetError) -> WarmfleetError:
    """``error`` as clients are told of it: which machine failed, and how, is for the log."""
    if isinstance(error, WorkerLost | Corrupt):
        return WorkerLost("the worker was lost; the request may be sent again")
    if isinstance(error, Away):
        return Away("the router cannot be asked", error.retry_after, error.status)
    return error


def error_response(error: WarmfleetError) -> web.Response:
    status, headers, body = error_of(told(error))
    if status == 504:
        headers["x-should-retry"] = "false"  # the deadline was the client's own
    return web.Response(status=status, headers=headers, body=body, content_type="application/json")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[REQUEST_ID] = intake.request_id(request.headers.get("X-Request-Id"))
    try:
        return await handler(request)
    except ConnectionError:
        raise  # nobody is left to be told
    except Exception as error:
        if _BEGUN in request:  # another response would land in this one's body
            _log.exception("%s %s failed within its response", request.method, request.path)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the response has begun already") from error
        return _response_to(error, request)


def _response_to(error: Exception, request: web.Request) -> web.Response:
    if isinstance(error, WarmfleetError):
        return error_response(error)
    if isinstance(error, web.HTTPException):
        if error.status < 400:
            raise error
        what = f"path: {request.path[:100]!r} is not served here" if error.status == 404 else error.reason
        return _shown(error.status, what, error.headers.get("Allow"))
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return _shown(500, "internal error")


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    request[_BEGUN] = True
    response.headers["Server"] = "warmfleet"
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]


def _shown(status: int, reason: str, allow: str | None = None) -> web.Response:
    headers = {"Allow": allow} if allow else {}
    body = error_body(reason, status)
    return web.Response(status=status, headers=headers, body=body, content_type="application/json")


class _Connection(RequestHandler):
    """One client's connection; what is no HTTP is refused in the same shape as a bad request."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._keepalive_handle is not None:  # aiohttp has one time for the first request and for the next
            self._keepalive_handle.cancel()
        self._next_keepalive_close_time = self._loop.time() + _IDLE_S
        self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        if status == 500:
            _log.error("request failed", exc_info=exc)
        reason = (message or "").partition("\n")[0].strip(" :") or "malformed HTTP"
        response = _shown(status, f"http: {reason[:200]}" if status < 500 else "internal error")
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """aiohttp offers no setting for the class of its connections."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )


def _listen(address: str, reuse_port: bool) -> socket.socket:
    """Raises ConfigError."""
    host, port = split_address(address)
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # inherited
        listening.setblocking(False)
        listening.bind(where)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from None
    return listening
