"""Ports that a test names before it takes them, or takes again."""

import os
import socket

# Below those from which the system gives connections theirs, so that none gets in between. Another run of the
# tests on this host begins elsewhere.
_FIRST, _LAST = 20_000, 32_000
_ports = iter(range(_FIRST + 97 * os.getpid() % (_LAST - _FIRST - 2000), _LAST))


def free_port() -> int:
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
