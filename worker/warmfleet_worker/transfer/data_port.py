"""A data port: a listener, and a thread for each connection, for whoever answers them."""

import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import Callable
from threading import Event, Thread

from warmfleet_proto.errors import Corrupt, WorkerLost

from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.tcp_stream import STALL_S, TcpStream
from warmfleet_worker.transfer.transport import Lot, Shelf

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
_BACKLOG = 64
_REST_S = 0.1


class DataPort:
    """A port for peers' connections. Subclasses answer them."""

    def __init__(self, shelf: Shelf, tls: ssl.SSLContext | None = None) -> None:
        self.refused = 0  # connections that were none, or opened no lease
        self._shelf = shelf
        self._tls = tls
        self._streams: set[TcpStream] = set()
        self._threads: set[Thread] = set()
        self._listener: socket.socket | None = None
        self._accepting: Thread | None = None
        self._closed = Event()

    @property
    def connections(self) -> int:
        return len(self._streams)

    def listen(self, host: str, port: int) -> int:
        """Opens the port and returns its number; port 0 takes a free one. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open(socket.create_server((host, port), family=family, backlog=_BACKLOG))
        bound: int = self._listener.getsockname()[1] if self._listener else 0
        return bound

    def listen_here(self) -> str:
        """Opens a socket that only processes of this host find, and returns its name. It has no file, so
        it goes with the process however that ends."""
        name = f"warmfleet-{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0{name}")
        listener.listen(_BACKLOG)
        self._open(listener)
        return name

    def close(self) -> None:
        """Ends every connection and waits for their threads."""
        self._closed.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if self._accepting is not None:
            self._accepting.join(STALL_S)  # then nothing is accepted any more
        for stream in list(self._streams):
            stream.stop()
        for thread in list(self._threads):
            thread.join(STALL_S)

    def _answer(self, stream: TcpStream) -> None:
        """One connection, to its end. Raises Corrupt for what is none, WorkerLost when the target goes."""
        raise NotImplementedError

    def _opened(self, stream: TcpStream) -> Lot:
        """The lot of the lease that the connection names. Raises Corrupt if there is no such lease."""
        lot = self._shelf.open(*frames.read_hello(stream.receive(frames.HELLO_BYTES)))
        if lot is None:
            raise Corrupt("no such lease")
        return lot

    def _open(self, listener: socket.socket) -> None:
        self._listener = listener
        self._accepting = self._start(self._accept, listener)

    def _start(self, run: Callable[[socket.socket], None], on: socket.socket) -> Thread:
        thread = Thread(target=run, args=(on,), name="transfer-source", daemon=True)
        self._threads.add(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                _log.warning("no data connection can be taken: %s", error.strerror)
                self._closed.wait(_REST_S)  # until some descriptors are free again
                continue
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
        if self._closed.is_set():  # it may have been too late to be stopped
            stream.stop()
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
