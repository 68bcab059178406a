"""One data connection, blocking, with a bound on every wait. System calls release the interpreter's lock."""

import contextlib
import os
import select
import socket
import ssl
import struct
from collections.abc import Sequence

from warmfleet_proto.errors import WorkerLost

from warmfleet_worker.transfer.transport import Address

STALL_S = 2.0  # without a byte: the peer is stuck
_FILE = b"F"  # goes with a descriptor
_CREDENTIALS = struct.Struct("@iII")  # of a Unix socket's peer: process, user, group
_PARTS = 512  # of one sendmsg; Linux takes 1,024


class TcpStream:
    """Plain sockets gather and fill whole pieces in one system call; TLS copies, and has calls of its own.

    Every method raises WorkerLost when the connection ends or stalls.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._secure = isinstance(connected, ssl.SSLSocket)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience(STALL_S)

    def patience(self, seconds: float) -> None:
        """How long each wait may last. On plain sockets the kernel keeps it: Python's own timeouts would
        poll before every call and never fill a buffer at once."""
        if self._secure:
            self._socket.settimeout(seconds)
            return
        self._socket.settimeout(None)
        whole, rest = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(rest * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            if self._secure:
                for part in parts:
                    self._socket.sendall(part)
            else:
                self._gather([memoryview(part) for part in parts])
        except OSError as error:
            raise WorkerLost(f"the connection failed: {_why(error)}") from None

    def receive(self, count: int) -> bytes:
        data = bytearray(count)
        self.receive_into(memoryview(data))
        return bytes(data)

    def receive_into(self, view: memoryview) -> None:
        flags = 0 if self._secure else socket.MSG_WAITALL
        while view:
            try:
                count = self._socket.recv_into(view, 0, flags)
            except OSError as error:
                raise WorkerLost(f"the connection failed: {_why(error)}") from None
            if not count:
                raise WorkerLost("the peer closed the connection")
            view = view[count:]

    @property
    def has_more(self) -> bool:
        """Whether something has come that was not received yet, or the end; of a plain socket."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def is_another_users(self) -> bool:
        """Whether a process of this host at the other end is: any can connect to a Unix socket without a
        file, or take its name when its owner has ended. Over a network nobody can tell."""
        if self._socket.family != socket.AF_UNIX:
            return False
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(data)[1] != os.geteuid())

    def send_file(self, descriptor: int) -> None:
        """Sends a file descriptor to a process of this host, over a Unix socket."""
        try:
            socket.send_fds(self._socket, [_FILE], [descriptor])
        except OSError as error:
            raise WorkerLost(f"the connection failed: {_why(error)}") from None

    def receive_file(self) -> int:
        """The caller closes it."""
        try:
            data, files, _, _ = socket.recv_fds(self._socket, len(_FILE), 1)
        except OSError as error:
            raise WorkerLost(f"the connection failed: {_why(error)}") from None
        if data != _FILE or len(files) != 1:
            for file in files:
                os.close(file)
            raise WorkerLost("the peer sent no file")
        return files[0]

    def stop(self) -> None:
        """Ends the stream for whoever waits in it. May be called from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def _gather(self, parts: list[memoryview]) -> None:
        start = 0
        while start < len(parts):
            sent = self._socket.sendmsg(parts[start : start + _PARTS])
            while start < len(parts) and sent >= len(parts[start]):
                sent -= len(parts[start])
                start += 1
            if sent:
                parts[start] = parts[start][sent:]


def connect(address: Address, tls: ssl.SSLContext | None) -> TcpStream:
    """Raises WorkerLost."""
    try:
        plain = socket.create_connection(address, STALL_S)
        return TcpStream(plain if tls is None else tls.wrap_socket(plain, server_hostname=address.host))
    except OSError as error:
        raise WorkerLost(f"no data connection to {address.host}:{address.port}: {error}") from None


def _why(error: OSError) -> str:
    if isinstance(error, BlockingIOError | TimeoutError):
        return "no byte came or left for too long"
    return error.strerror or type(error).__name__
