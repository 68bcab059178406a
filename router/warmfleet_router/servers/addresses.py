"""The addresses behind servers' names: a data plane that is told where to send a request takes no names."""

import asyncio
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from warmfleet_proto.channel import split_address
from warmfleet_proto.tasks import cancelled

FRESH_S = 5.0  # Envoy asks as often
MAX_NAMES = 1 << 14  # remembered


class _Answer(NamedTuple):
    addresses: tuple[str, ...]
    until: float  # the loop's clock


class Addresses:
    """What DNS says of servers' names. Only who asks first waits: what is known is asked for again in the
    background, and kept if DNS fails."""

    def __init__(self) -> None:
        self._known: dict[str, _Answer] = {}
        self._asking: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def of(self, endpoint: str) -> Sequence[str]:
        """IP:PORT of HOST:PORT, sorted; IPv6 only where there is nothing else. Empty: nobody knows it."""
        if found := _literal(endpoint):
            return found
        known = self._known.get(endpoint)
        if known is None:
            return await asyncio.shield(self._asked(endpoint))
        if known.until < asyncio.get_running_loop().time():
            self._asked(endpoint)
        return known.addresses

    async def close(self) -> None:
        await cancelled(*self._asking.values())

    def _asked(self, endpoint: str) -> "asyncio.Task[tuple[str, ...]]":
        task = self._asking.get(endpoint)
        if task is None:
            task = self._asking[endpoint] = asyncio.create_task(self._ask(endpoint))
            task.add_done_callback(lambda _: self._asking.pop(endpoint))
        return task

    async def _ask(self, endpoint: str) -> tuple[str, ...]:
        loop, (host, port) = asyncio.get_running_loop(), split_address(endpoint)
        try:
            told = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # no such name, no DNS
            before = self._known.get(endpoint)
            found = before.addresses if before else ()
        else:
            old = [f"{where[0]}:{port}" for family, *_, where in told if family == socket.AF_INET]
            new = [f"[{where[0]}]:{port}" for family, *_, where in told if family == socket.AF_INET6]
            found = tuple(sorted(set(old or new)))
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[endpoint] = _Answer(found, loop.time() + FRESH_S)
        return found


@lru_cache(MAX_NAMES)
def _literal(endpoint: str) -> tuple[str, ...]:
    """The endpoint itself, in its usual spelling, if it is an address; empty if it is a name."""
    host, port = split_address(endpoint)
    try:
        address = ip_address(host)
    except ValueError:
        return ()
    return (f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}",)
