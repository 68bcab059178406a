"""Lines become bytes in files of bounded size.

Pure: the shell is told what to write and where a file begins.
"""

from collections.abc import Callable

from warmfleet_router.decisions import chains
from warmfleet_router.decisions.lines import Begin, Heard, Line, Lost, More, Ticked, encode
from warmfleet_router.view import Counters

MOST_TICKS = 100  # in one line

Write = Callable[[bytes, bool], bool]  # a line, and whether a new file begins with it; False: not taken


class Journal:
    """Keeps lines in the order of what happened, while messages are taken in by and by."""

    def __init__(self, begin: Begin, counters: Counters, write: Write, file_bytes: int) -> None:
        self.chains = chains.Writer()
        self._begin = begin
        self._counters = counters
        self._write = write
        self._file_bytes = file_bytes
        self._size = 0  # of the file
        self._lost = 0
        self._ticks: list[float] = []
        self._open: dict[str, Heard | More] = {}  # by worker; not written yet
        self._head()

    def note(self, line: Line) -> None:
        """It has happened, after all that was noted or opened before."""
        self.settle()
        self._put(line)

    def tick(self, now: float) -> None:
        self._cut()
        self._ticks.append(now)
        if len(self._ticks) >= MOST_TICKS:
            self._flush_ticks()

    def open(self, line: Heard) -> None:
        """A message is being taken in; its changes are added to the line as they happen."""
        self.settle()
        self._open[line.worker] = line

    def opened(self, worker: str) -> Heard | More | None:
        return self._open.get(worker)

    def close(self, worker: str) -> None:
        """It has been taken in to its end."""
        line = self._open.pop(worker)
        self._cut()
        self._flush_ticks()
        self._put(line)

    def settle(self) -> None:
        """Everything so far is written: to be called before a chain is made that may refer to others."""
        self._cut()
        self._flush_ticks()

    def _cut(self) -> None:
        """What has been taken in of open messages comes before what happens now."""
        for worker, line in self._open.items():
            if isinstance(line, Heard) or line.changes:
                self._flush_ticks()
                line.open = True
                self._put(line)
                self._open[worker] = More(worker)

    def _flush_ticks(self) -> None:
        if self._ticks:
            ticks, self._ticks = self._ticks, []
            self._put(Ticked(ticks))

    def _head(self) -> None:
        self._size = 0
        self.chains = chains.Writer()
        self._put(self._begin, fresh=True)

    def _put(self, line: Line, fresh: bool = False) -> None:
        if self._lost and not fresh:
            if not self._send(encode(Lost(self._lost)), False):
                self._miss()
                return
            self._lost = 0
        if self._send(encode(line), fresh):
            self._counters.decision_lines += 1
        else:
            self._miss()
        if self._size >= self._file_bytes:
            self._begin.part += 1
            self._head()

    def _send(self, data: bytes, fresh: bool) -> bool:
        self._size += len(data) + 1
        return self._write(data, fresh)

    def _miss(self) -> None:
        """Nothing may refer to a chain that was not written."""
        self._lost += 1
        self._counters.decision_lines_dropped += 1
        self.chains = chains.Writer()
