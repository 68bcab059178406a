"""Several gateway processes behind one address: the kernel gives each a share of the connections.

The parent holds the address, starts the others, starts again what dies, and ends them in order.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from warmfleet_proto import log
from warmfleet_proto.channel import split_address
from warmfleet_proto.settings import ConfigError

from warmfleet_router.config import GatewayConfig
from warmfleet_router.local.children import die_with

_log = logging.getLogger(__name__)

AGAIN_S = 1.0  # between a death and the next start
_LOOK_S = 0.2
_GRACE_S = 2.0  # beyond the drain


def run(config: GatewayConfig, command: Sequence[str]) -> int:
    """Until SIGTERM or SIGINT; ``command`` starts one process, settings of its own are added to it.

    The exit status. Raises ConfigError.
    """
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:  # a second time: at once
            for child in children:
                child.kill()
        asked = True

    with _held(config.http) as address:
        children = [_Child([*command, *_settings(config, address, n)]) for n in range(config.processes)]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            said = [child.ready() for child in children]
            if not all(said):
                return 1
            pids = [child.pid for child in children]
            metrics = [each["admin"] for each in said if "admin" in each]
            shown = {"ready": True, "http": address, "pids": pids} | ({"metrics": metrics} if metrics else {})
            print(json.dumps(shown), flush=True)
            while not asked:
                time.sleep(_LOOK_S)
                for child in children:
                    child.revive()
            return 0
        finally:
            for child in children:
                child.end()
            until = time.monotonic() + config.limits.drain_s + _GRACE_S
            for child in children:
                child.wait(until)


class _Child:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._died_at: float | None = None
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """Its ready line; empty when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def revive(self) -> None:
        """Starts it again a moment after it has died."""
        if self._process.poll() is None:
            return
        now = time.monotonic()
        if self._died_at is None:
            self._died_at = now
            status = self._process.returncode
            log.event(_log, "gateway process ended", level=logging.WARNING, pid=self.pid, status=status)
        elif now - self._died_at >= AGAIN_S:
            self._died_at = None
            self._close()
            self._process = self._start()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def wait(self, until: float) -> None:
        try:
            self._process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


def command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "warmfleet_router.cli", "gateway", *arguments]


def _settings(config: GatewayConfig, address: str, number: int) -> list[str]:
    """Each serves its metrics at a port of its own, where it has an address for them."""
    given = {"http": address, "processes": 1, "reuse_port": True}
    if config.metrics:
        host, port = split_address(config.metrics)
        given["metrics"] = f"{host}:{port and port + number}"
    return [part for key, value in given.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@contextlib.contextmanager
def _held(address: str) -> Iterator[str]:
    """Bound and never listened on: it keeps the port while others share it. Raises ConfigError."""
    host, port = split_address(address)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            holder.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror}") from None
        yield f"{address.rpartition(':')[0]}:{holder.getsockname()[1]}"
