"""Kept-alive HTTP connections to servers that are not ours."""

import asyncio
from collections.abc import Mapping

import aiohttp
from warmfleet_proto.errors import Rejected, WorkerLost

from warmfleet_router.servers.backend import bearer

KEEP_ALIVE_S = 4.0  # uvicorn closes an idle connection after five
CONNECT_S = 3.0
READ_AHEAD_BYTES = 64 << 10  # twice of it are read before a client that does not keep up stops us


class ServerPool:
    """``keys`` of those that want one, by base URL; it may change. TCP_NODELAY is aiohttp's own default."""

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._keys = {} if keys is None else keys
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, base: str, path: str, body: bytes, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """The response with its headers read, whatever its status. Raises WorkerLost.

        The caller limits the time, and closes the response.
        """
        url = base + path
        if key := self._keys.get(base):
            headers = headers | bearer(key)
        try:
            return await self._open().post(url, data=body, headers=headers)
        except aiohttp.ServerDisconnectedError:
            pass  # a kept-alive connection that was just being closed; nothing has been answered
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(error) from None
        try:
            return await self._open().post(url, data=body, headers=headers)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(error) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                auto_decompress=False,
                read_bufsize=READ_AHEAD_BYTES,
                skip_auto_headers=("User-Agent",),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)


def _lost(error: Exception) -> WorkerLost:
    return WorkerLost(f"the server cannot be reached: {str(error)[:200] or type(error).__name__}")


def refused(status: int, retry_after: str | None) -> Rejected:
    """A server that has too much to do: another may take the request."""
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() and len(retry_after) < 6 else 1.0
    return Rejected(f"the server answered {status}", seconds, status)
