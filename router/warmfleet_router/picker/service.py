"""The endpoint picker's server: Envoy asks where each request should go, and carries the request itself."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain, cycle, repeat
from typing import cast

from warmfleet_proto.channel import Tls, load_tls, split_address
from warmfleet_proto.settings import ConfigError

from warmfleet_router.gateway.intake import Tenants
from warmfleet_router.gateway.relaying import Relays
from warmfleet_router.picker.answer import Held
from warmfleet_router.picker.call import Call, called
from warmfleet_router.picker.exchange import Exchange
from warmfleet_router.picker.hpack import Header
from warmfleet_router.picker.http2 import Broken, Connection, Stream
from warmfleet_router.servers.backend import Backend

_STOP_S = 1.0
_PIECE_S = 0.25  # for the next piece of an answer of which something is held
_MESSAGE_BYTES = 1 << 20  # beyond the body
TIMED_FIRST, TIMED_EVERY = 16, 64  # answers whose first token is looked for

Accept = Callable[[Stream, list[Header]], Call]


class _Peer(asyncio.Protocol):
    """One connection of an Envoy's. Whoever does not read is not read from."""

    def __init__(self, accept: Accept, peers: "set[_Peer]") -> None:
        self._accept = accept
        self._peers = peers

    @property
    def idle(self) -> bool:
        return not self._http.streams

    def leave(self) -> None:
        self._http.leave()

    def settle(self) -> None:
        """Ends in order what has its answer already: to Envoy the rest of it is no failure then."""
        with self._http:
            for stream in list(self._http.streams.values()):
                stream.call.settle()

    def close(self) -> None:
        """Once all that was said has been sent."""
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # ---- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._http = Connection(self._transport.write, self._accept)
        self._peers.add(self)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return  # TLS gives what it has read before
        try:
            self._http.receive(data)
        except Broken as error:
            self._http.abandon(error.code)
            self._transport.close()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._peers.discard(self)
        self._http.closed()


@asynccontextmanager
async def serving(
    address: str,
    tls: Tls | None,
    relays: Relays,
    tenants: Tenants,
    body_bytes: int,
    listed: Backend | None = None,
) -> AsyncIterator[str]:
    """The picker while the block lasts; the address that it has got. ``listed``: as of an Exchange.
    Raises ConfigError."""

    exchange = partial(Exchange, relays, tenants, body_bytes, listed, Held(), _timings())

    def accept(stream: Stream, headers: list[Header]) -> Call:
        path = dict(headers).get(b":path", b"")
        return called(path, stream, body_bytes + _MESSAGE_BYTES, exchange)

    peers: set[_Peer] = set()
    host, port = split_address(address)
    context = None if tls is None else _context(tls)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: _Peer(accept, peers), host, port, ssl=context)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from None
    try:
        yield f"{address.rpartition(':')[0]}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await _left(peers)


def _timings() -> Iterator[bool]:
    """Which answers begin to pass here, to see when first tokens come: a piece costs some 80 us."""
    return chain(repeat(True, TIMED_FIRST), cycle((True, *repeat(False, TIMED_EVERY - 1))))


async def _left(peers: set[_Peer]) -> None:
    """Streams have a moment to end; then they are ended or, if they wait for anything, cut off."""
    for peer in peers:
        peer.leave()
    await _idle(peers, _STOP_S)
    for peer in list(peers):
        peer.settle()
    await _idle(peers, _PIECE_S)
    while peers:  # each goes with the loop's next turn; one may come that shook hands until now
        for peer in list(peers):
            peer.abort()
        await asyncio.sleep(0)


async def _idle(peers: set[_Peer], within_s: float) -> None:
    """Closes those that are idle, or become so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while peers and loop.time() < until:
        for peer in list(peers):
            if peer.idle:
                peer.close()
        await asyncio.sleep(0.01)


def _context(tls: Tls) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return load_tls(context, tls)
