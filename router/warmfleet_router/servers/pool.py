"""Kept-alive HTTP connections to servers that are not ours."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from warmfleet_proto.errors import Rejected, WorkerLost

from warmfleet_router.servers.backend import bearer
from warmfleet_router.servers.catalogue import Place, place_of
from warmfleet_router.servers.connection import Connection, Reply

KEEP_ALIVE_S = 4.0  # uvicorn closes an idle connection after five
CLOSING_S = 1.0  # for news that a connection had ended before it was asked: a round trip, and a busy loop
CONNECT_S = 3.0
ANSWER_S = 5.0  # for a list of models, which no server has to think about
_GONE = (errno.EHOSTUNREACH, errno.ENETUNREACH)
MAX_IDLE = 256  # connections to one server


class ServerPool:
    """``keys`` of those that want one, by base URL; it may change. Event loops set TCP_NODELAY themselves."""

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._keys = {} if keys is None else keys
        self._idle: dict[Place, list[Connection]] = {}
        self._all: dict[Connection, Place] = {}
        self._tls: ssl.SSLContext | None = None

    async def post(self, base: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        """The answer with its headers read, whatever its status. Raises WorkerLost.

        The caller limits the time, and releases the answer. A request is sent a second time only if it met
        a kept connection on its end: closed soon, before any byte of an answer. What was closed later the
        server may have begun, and who sends that again is the caller, who counts it.
        """
        place = place_of(base)
        request = _request("POST", place, path, body, headers | self._key(base))
        if kept := self._kept(place):
            clock = asyncio.get_running_loop().time
            reply, asked_at = kept.ask(request), clock()
            try:
                return await _with_head(reply)
            except WorkerLost:
                if reply.began or clock() - asked_at > CLOSING_S:
                    raise
        connection = await self._connect(place)
        return await _with_head(connection.ask(request))

    def _key(self, base: str) -> dict[str, str]:
        key = self._keys.get(base)
        return bearer(key) if key else {}

    def _kept(self, place: Place) -> Connection | None:
        """The one that was used last: it is the least likely to be closed soon."""
        idle, now = self._idle.get(place, []), asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.free and now - connection.idle_since < KEEP_ALIVE_S:
                return connection
            connection.close()
        return None

    async def _connect(self, place: Place) -> Connection:
        try:
            return await self._opened(place)
        except (OSError, ValueError) as error:  # TimeoutError and ssl's are OSErrors
            why = str(error)[:200] or type(error).__name__
            raise WorkerLost(f"the server cannot be reached: {why}") from None

    async def _opened(self, place: Place) -> Connection:
        loop = asyncio.get_running_loop()
        tls = self._context() if place.tls else None

        def over(connection: Connection) -> None:
            idle = self._idle.setdefault(place, [])
            if not connection.open:
                self._all.pop(connection, None)
                if connection in idle:
                    idle.remove(connection)
                if not idle:
                    del self._idle[place]
            elif len(idle) < MAX_IDLE:
                connection.idle_since = loop.time()
                idle.append(connection)
            else:
                connection.close()

        async with asyncio.timeout(CONNECT_S):
            transport, connection = await loop.create_connection(
                lambda: Connection(over), place.host, place.port, ssl=tls
            )
        _keep_alive(transport.get_extra_info("socket"))
        self._all[connection] = place
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def give_up(self, base: str, silent_s: float) -> None:
        """Answers of which nothing has come for so long, of a server that answers nothing else either. One
        that drains is lost to whoever looks at its health, and ends what it has begun."""
        if self._silent(base, silent_s) and not await self._answers(base):
            for connection in self._silent(base, silent_s):
                connection.give_up()

    def _silent(self, base: str, silent_s: float) -> list[Connection]:
        before, place = asyncio.get_running_loop().time() - silent_s, place_of(base)
        ours = [connection for connection, its in self._all.items() if its == place]
        return [connection for connection in ours if connection.waits and connection.heard_at <= before]

    async def _answers(self, base: str) -> bool:
        """Whether anything is heard of it, if only that it takes nothing new."""
        place = place_of(base)
        request = _request("GET", place, "/v1/models", b"", self._key(base))
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = await self._opened(place)
                (await _with_head(connection.ask(request))).release(over=False)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno not in _GONE
        except (ValueError, WorkerLost):
            return True
        return True

    async def close(self) -> None:
        for connection in list(self._all):
            connection.close()
        while self._all:  # noqa: ASYNC110 - each goes with the loop's next turn
            await asyncio.sleep(0)


def _keep_alive(connected: Any) -> None:
    """A machine that is gone sends no word of it: the kernel asks whether it is there, and waiting for its
    answer ends after half a minute instead of with the client's patience."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            connected.setsockopt(socket.IPPROTO_TCP, option, value)


async def _with_head(reply: Reply) -> Reply:
    """The same, released if whoever waits is cancelled."""
    try:
        await reply.head()
    except BaseException:
        reply.release(over=False)
        raise
    return reply


def _request(method: str, place: Place, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [
        f"{method} {place.prefix}{path} HTTP/1.1",
        f"Host: {place.authority}",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body


def refused(status: int, retry_after: str) -> Rejected:
    """A server that has too much to do: another may take the request."""
    seconds = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else 1.0
    return Rejected(f"the server answered {status}", seconds, status)
