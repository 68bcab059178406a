"""Writes a decision log in a thread of its own: the router's loop never waits for a disk."""

import logging
import threading
from collections import deque
from pathlib import Path
from typing import IO

from warmfleet_proto import log

_log = logging.getLogger(__name__)

BACKLOG_BYTES = 16 << 20  # waiting to be written; what comes on top is not taken


class Writer:
    """PATH is the file being written, PATH.1 the one before it, and so on up to ``files`` in all."""

    def __init__(self, path: str, files: int) -> None:
        self._path = Path(path)
        self._files = files
        self._backlog: deque[tuple[bytes, bool]] = deque()
        self._waiting = 0  # bytes
        self._closed = False
        self._failed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)
        self._thread.start()

    def write(self, line: bytes, fresh: bool) -> bool:
        """False when it is too far behind, or cannot write."""
        with self._change:
            if self._failed or self._closed or self._waiting + len(line) > BACKLOG_BYTES:
                return False
            self._backlog.append((line, fresh))
            self._waiting += len(line) + 1
            self._change.notify()
        return True

    def close(self) -> None:
        """Writes what it has taken."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        file: IO[bytes] | None = None
        try:
            while taken := self._take():
                for line, fresh in taken:
                    if fresh or file is None:
                        file = self._next(file)
                    file.write(line + b"\n")
                if file is not None:
                    file.flush()
        except OSError as error:
            self._failed = True
            log.event(_log, "decision_log_ended", level=logging.ERROR, path=str(self._path), why=str(error))
        finally:
            if file is not None:
                file.close()

    def _take(self) -> list[tuple[bytes, bool]]:
        """All that waits; nothing once it is closed and has written everything."""
        with self._change:
            self._change.wait_for(lambda: self._backlog or self._closed)
            taken = list(self._backlog)
            self._backlog.clear()
            self._waiting = 0
            return taken

    def _next(self, file: IO[bytes] | None) -> IO[bytes]:
        if file is not None:
            file.close()
        for number in range(self._files - 1, 0, -1):
            older = numbered(self._path, number - 1)
            if older.exists():
                older.replace(numbered(self._path, number))
        return self._path.open("wb")


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path
