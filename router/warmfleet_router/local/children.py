"""Child processes of ``warmfleet up``: started, heard until they are ready, and never left behind."""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

_TAIL_LINES = 12
_LINE_BYTES = 1 << 20
_LOG_BYTES = 64 << 20  # a log; one older one is kept
_PR_SET_PDEATHSIG = 1


class ChildDied(Exception):
    """A child ended before it was ready; the message holds the last lines it wrote."""


class Child:
    """One process with a log file; the JSON line on stdout that says ``ready`` carries its addresses."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.last_line = "starting"
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._listener: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            limit=_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C reaches `up` alone
            preexec_fn=die_with(os.getpid()),
        )
        self._listener = asyncio.create_task(self._listen())

    async def ready(self) -> dict[str, Any]:
        """The ready line. Raises ChildDied."""
        return await asyncio.shield(self._ready)

    @property
    def is_ready(self) -> bool:
        return self._ready.done()

    @property
    def was_started(self) -> bool:
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def ended(self) -> None:
        """Waits for the process to end by itself."""
        assert self._process is not None
        await self._process.wait()

    def obituary(self) -> str:
        """How it ended and the last lines it wrote to stderr."""
        assert self._process is not None
        status = self._process.returncode
        ending = "is alive" if status is None else f"ended with exit status {status}"
        if status is not None and status < 0:
            ending = f"ended with {signal.Signals(-status).name}"
        return "".join([f"{self.name} {ending}", *(f"\n  {line}" for line in self._tail)])

    def signal(self, number: int) -> None:
        """Signals the whole process group: a worker may have helpers of its own."""
        if self._process is not None and self._listener is not None and not self._listener.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def closed(self) -> None:
        """Waits until the process and its output have ended."""
        if self._listener is not None:
            await asyncio.wait({self._listener})  # a caller that gives up waiting cancels nothing
            self._listener.result()

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.log.unlink(missing_ok=True)
        with contextlib.closing(RotatingFileHandler(self.log, maxBytes=_LOG_BYTES, backupCount=1)) as log:
            await asyncio.gather(
                self._read(self._process.stdout, log, self._on_stdout),
                self._read(self._process.stderr, log, self._on_stderr),
            )
        await self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(ChildDied(self.obituary()))
            self._ready.exception()  # `up` may be gone before it asks

    async def _read(
        self, stream: asyncio.StreamReader, log: logging.Handler, on_line: Callable[[str], None]
    ) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # a line above the limit: dropped, but its pipe is kept empty
                continue
            if not raw:
                return
            if line := raw.decode(errors="replace").rstrip():
                log.handle(logging.makeLogRecord({"msg": line}))
                on_line(line)

    def _on_stdout(self, line: str) -> None:
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if not self._ready.done() and isinstance(said, dict) and said.get("ready") is True:
                self._ready.set_result(said)

    def _on_stderr(self, line: str) -> None:
        self.last_line = _readable(line)
        self._tail.append(self.last_line)


async def stop(children: Sequence[Child], grace_s: float = 5.0) -> None:
    """Ends every child: those that serve by SIGTERM, and by SIGKILL when they are still there after
    ``grace_s``; those that were not ready have nothing to finish."""
    for child in children:
        child.signal(signal.SIGTERM if child.is_ready else signal.SIGKILL)
    try:
        async with asyncio.timeout(grace_s):
            await asyncio.gather(*(child.closed() for child in children))
    except TimeoutError:
        for child in children:
            child.signal(signal.SIGKILL)
        await asyncio.gather(*(child.closed() for child in children))


def _readable(line: str) -> str:
    """A log record as a short line; anything else as it is, after its last carriage return."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.rpartition("\r")[2]
    if not isinstance(record, dict) or "event" not in record:
        return line
    fields = [f"{key}={record[key]}" for key in record if key not in ("time", "level", "logger", "event")]
    return " ".join([str(record["event"]), *fields])


def die_with(parent: int) -> Any:
    """Run in the child before exec: the kernel ends it when `up` dies, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def leash() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return leash
