"""Blocks on their way up: from the host's memory and from the disk into the device's pool."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from warmfleet_proto.errors import Corrupt

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.fetch import Arrival, Fetch, Piece
from warmfleet_worker.tiers.complaints import Complaints
from warmfleet_worker.tiers.disk import DiskStore
from warmfleet_worker.tiers.format import copy_sum

_PART_BYTES = 8 << 20  # brought between two looks at whether anybody still waits

Report = Callable[[Arrival], None]
"""From any thread."""


class _Carrier:
    """See ``runner.Carrier``. One thread brings one fetch after another."""

    def __init__(self, engine: Engine, report: Report, name: str) -> None:
        self._engine = engine
        self._report = report
        self._wanted: set[int] = set()  # fetches under way that somebody waits for
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def begin(self, fetch: Fetch) -> None:
        self._wanted.add(fetch.id)
        self._thread.submit(self._bring, fetch)

    def abandon(self, fetch_id: int) -> None:
        self._wanted.discard(fetch_id)

    def close(self) -> None:
        """Waits for what is under way; what waits is not begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _bring(self, fetch: Fetch) -> None:
        arrived, failure = 0, ""
        try:
            for part in self._parts(fetch):
                if fetch.id not in self._wanted:
                    break
                arrived += self._bring_part(part)
                if arrived < len(fetch.pieces):
                    self._report(Arrival(fetch.id, arrived, over=False))
        except _Missed as missed:
            arrived, failure = arrived + missed.arrived, missed.why
        except Exception as error:  # the thread lives, and an end is owed
            failure = type(error).__name__
        self._wanted.discard(fetch.id)
        self._report(Arrival(fetch.id, arrived, True, failure))

    def _parts(self, fetch: Fetch) -> Iterator[tuple[Piece, ...]]:
        count = max(1, _PART_BYTES // self._engine.block_bytes)
        for i in range(0, len(fetch.pieces), count):
            yield fetch.pieces[i : i + count]

    def _bring_part(self, pieces: tuple[Piece, ...]) -> int:
        raise NotImplementedError


class _Missed(Exception):
    """The rest of a fetch does not come; ``arrived`` leading pieces of its part did."""

    def __init__(self, arrived: int, why: str) -> None:
        super().__init__(why)
        self.arrived = arrived
        self.why = why


class HostCarrier(_Carrier):
    def __init__(
        self, engine: Engine, memory: memoryview, report: Report, condemn: Callable[[int], None]
    ) -> None:
        """``memory``: the slots, one after another. ``condemn``: told of a slot whose copy is wrong."""
        super().__init__(engine, report, "host-tier")
        self._memory = memory
        self._condemn = condemn

    def _bring_part(self, pieces: tuple[Piece, ...]) -> int:
        size, good = self._engine.block_bytes, 0
        for piece in pieces:
            slot = piece.stock.slot
            if copy_sum(self._memory[slot * size : (slot + 1) * size]) != piece.stock.sum:
                self._condemn(slot)
                break
            good += 1
        self._write(pieces[:good])
        if good < len(pieces):
            raise _Missed(good, "corrupt")
        return good

    def _write(self, pieces: tuple[Piece, ...]) -> None:
        size = self._engine.block_bytes
        for first, end in neighbours([piece.stock.slot for piece in pieces]):
            at = pieces[first].stock.slot * size
            copy = self._memory[at : at + (end - first) * size]
            self._engine.write_blocks([piece.block for piece in pieces[first:end]], copy)


class DiskCarrier(_Carrier):
    def __init__(self, engine: Engine, store: DiskStore, report: Report, complaints: Complaints) -> None:
        super().__init__(engine, report, "disk-reader")
        self._store = store
        self._complaints = complaints
        size = engine.block_bytes
        self._slab = engine.host_memory(max(1, _PART_BYTES // size) * size)

    def _bring_part(self, pieces: tuple[Piece, ...]) -> int:
        size, good, why = self._engine.block_bytes, 0, ""
        for i, piece in enumerate(pieces):
            if why := self._read(piece, self._slab[i * size : (i + 1) * size]):
                break
            good += 1
        if good:
            self._engine.write_blocks([piece.block for piece in pieces[:good]], self._slab[: good * size])
        if why:
            raise _Missed(good, why)
        return good

    def _read(self, piece: Piece, copy: memoryview) -> str:
        """What is wrong, if anything is."""
        try:
            header = self._store.get(piece.hash, piece.token_ids, copy)
        except Corrupt as error:
            self._complaints.say("corrupt", error)
            return "corrupt"
        except OSError as error:
            self._complaints.say("read", error)
            return "unreadable"
        return "" if header else "gone"


def neighbours(slots: list[int]) -> Iterator[tuple[int, int]]:
    """Index ranges over which the slots rise one by one: each is one piece of memory."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            yield start, i
            start = i
