"""The workers of an index: their numbers, and the columns they sit in.

Each block has some bits for every column: those of the worker that sits there. A worker that leaves or is
cleared gives its column up, and so has no blocks from that moment. The bits left behind are swept slice by
slice; only then are the column, and the number of a worker that left, used again.
"""

from typing import Final

MAX_WORKERS: Final = 4096  # numbers in use, those that wait for their sweep included
MAX_COLUMNS: Final = 2 * MAX_WORKERS  # every worker may be cleared once more before a sweep is forced


class Seats:
    """What both implementations of the index share; they provide the methods at the end."""

    def __init__(self) -> None:
        self._numbers = 0  # bit per worker number in use
        self._taken = 0  # bit per column in use
        self._dead = 0  # columns that the next sweep clears
        self._sweeping = 0  # columns that the sweep under way clears
        self._swept = 0  # slots that it has done
        self._leaving: dict[int, int] = {}  # column -> worker number, free again after the sweep

    def add_worker(self) -> int:
        """A new worker's number: the lowest that is free."""
        worker = _lowest_zero(self._numbers)
        if worker >= MAX_WORKERS:
            raise ValueError(f"more than {MAX_WORKERS} workers, counting those not yet swept")
        self._numbers |= 1 << worker
        self._sit(worker)
        return worker

    def remove_worker(self, worker: int) -> None:
        """All that it holds disappears at once; its number is free again after a sweep."""
        self._leaving[self._rise(worker)] = worker

    def clear(self, worker: int) -> None:
        """All that it holds disappears at once; the worker stays."""
        if self.held(worker):
            self._rise(worker)
            self._sit(worker)

    @property
    def clean(self) -> bool:
        """Whether there is nothing to sweep."""
        return not (self._sweeping or self._dead)

    def sweep(self, budget: int) -> bool:
        """Visits up to ``budget`` slots for what departed workers left; True when nothing is left."""
        if budget < 1:
            raise ValueError("budget must be at least 1 slot")
        while budget > 0 and (self._sweeping or self._dead):
            if not self._sweeping:
                self._sweeping, self._dead, self._swept = self._dead, 0, 0
            stop = min(self._swept + budget, self._extent)
            self._withdraw(self._sweeping.to_bytes(MAX_COLUMNS // 8, "little"), self._swept, stop)
            budget -= max(stop - self._swept, 1)
            self._swept = stop
            if stop == self._extent:
                self._release()
        return self.clean

    def _sit(self, worker: int) -> None:
        column = _lowest_zero(self._taken)
        while column >= MAX_COLUMNS:
            self.sweep(self._extent + 1)
            column = _lowest_zero(self._taken)
        self._taken |= 1 << column
        self._seat(worker, column)

    def _rise(self, worker: int) -> int:
        column = self._unseat(worker)
        self._dead |= 1 << column
        return column

    def _release(self) -> None:
        self._taken &= ~self._sweeping
        for column in [c for c in self._leaving if self._sweeping >> c & 1]:
            self._numbers &= ~(1 << self._leaving.pop(column))
        self._sweeping = 0

    # ---- provided by the implementation -------------------------------------------------------

    @property
    def _extent(self) -> int:
        """Slots ever used."""
        raise NotImplementedError

    def held(self, worker: int, /) -> int:
        """Distinct blocks that it holds in any tier; ``IndexError`` for a worker that is not there."""
        raise NotImplementedError

    def _seat(self, worker: int, column: int) -> None:
        raise NotImplementedError

    def _unseat(self, worker: int) -> int:
        """The column that it had; ``IndexError`` for a worker that is not there."""
        raise NotImplementedError

    def _withdraw(self, columns: bytes, start: int, stop: int) -> None:
        """Takes these columns, a bit each, out of what is held of the slots from start to stop."""
        raise NotImplementedError


def _lowest_zero(bits: int) -> int:
    return (~bits & bits + 1).bit_length() - 1
