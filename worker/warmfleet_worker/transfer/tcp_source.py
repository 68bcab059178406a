"""The source's end of the tcp transport: a data port that answers for the blocks of live leases."""

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from threading import Thread

from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.limits import LEASE_TTL_S

from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.tcp_stream import STALL_S, TcpStream
from warmfleet_worker.transfer.throttle import Throttle
from warmfleet_worker.transfer.transport import Lot, Shelf

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
_BACKLOG = 64


class TcpSource:
    def __init__(
        self, shelf: Shelf, tls: ssl.SSLContext | None = None, throttle: Throttle | None = None
    ) -> None:
        self.refused = 0  # connections that were none, or opened no lease
        self._shelf = shelf
        self._tls = tls
        self._throttle = throttle
        self._streams: set[TcpStream] = set()
        self._threads: set[Thread] = set()
        self._listener: socket.socket | None = None

    @property
    def connections(self) -> int:
        return len(self._streams)

    def listen(self, host: str, port: int) -> int:
        """Opens the port and returns its number; port 0 takes a free one. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._start(self._accept, self._listener)
        bound: int = self._listener.getsockname()[1]
        return bound

    def close(self) -> None:
        """Ends every connection and waits for their threads."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for stream in list(self._streams):
            stream.stop()
        for thread in list(self._threads):
            thread.join(STALL_S)

    def _start(self, run: Callable[[socket.socket], None], on: socket.socket) -> None:
        thread = Thread(target=run, args=(on,), name="transfer-source", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return  # closed
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            if len(self._threads) > MAX_CONNECTIONS:
                self.refused += 1
                plain.close()
            else:
                self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        """One connection, to its end."""
        try:
            plain.settimeout(STALL_S)
            stream = TcpStream(plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True))
        except OSError as error:
            self.refused += 1
            _log.warning("a data connection failed: %s", error)
            plain.close()
            return
        self._streams.add(stream)
        try:
            self._answer(stream)
        except Corrupt as error:
            self.refused += 1
            _log.warning("a data connection was refused: %s", error)
        except WorkerLost:
            pass  # the target has all it wants, or has gone: its lease ends by its own rules
        except Exception:
            _log.exception("a data connection failed")
        finally:
            self._streams.discard(stream)
            stream.close()

    def _answer(self, stream: TcpStream) -> None:
        lease, secret = frames.read_hello(stream.receive(frames.HELLO_BYTES))
        lot = self._shelf.open(lease, secret)
        if lot is None:
            raise Corrupt("no such lease")
        stream.send([frames.welcome(lot.block_bytes, lot.blocks)])
        most = frames.piece_blocks(lot.block_bytes)
        slab = memoryview(bytearray(min(most, lot.blocks) * lot.block_bytes))
        while True:
            stream.patience(LEASE_TTL_S)  # a target that is out of slabs asks again when it has landed some
            first, count = frames.read_ask(stream.receive(frames.RANGE_BYTES), lot.blocks, most)
            stream.patience(STALL_S)
            self._send(stream, lot, first, count, slab)

    def _send(self, stream: TcpStream, lot: Lot, first: int, count: int, slab: memoryview) -> None:
        parcel = lot.fetch(first, count, slab)
        if parcel is None:
            stream.send([frames.answer(first, [])])
        elif self._throttle is None:
            stream.send([frames.answer(first, parcel.sums), *parcel.parts])
        else:
            stream.send([frames.answer(first, parcel.sums)])
            for part in parcel.parts:
                for piece in self._throttle.slices(part):
                    stream.send([piece])
