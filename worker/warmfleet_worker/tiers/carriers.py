"""Blocks on their way up: from the host's memory and from the disk into the device's pool."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from warmfleet_proto.errors import Corrupt

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.fetch import Arrival, Fetch, Piece
from warmfleet_worker.tiers.complaints import Complaints
from warmfleet_worker.tiers.copies import Copies
from warmfleet_worker.tiers.disk import DiskStore

_DISK_BYTES = 16 << 20  # of a part
READERS = 4  # at once: one alone leaves a good disk idle while it proves what it has read

Report = Callable[[Arrival], None]
"""From any thread."""


class _Carrier:
    """See ``runner.Carrier``. One thread brings one fetch after another."""

    def __init__(self, engine: Engine, report: Report, name: str, part_bytes: int) -> None:
        """``part_bytes`` are brought between two looks at whether anybody still waits."""
        self._engine = engine
        self._part = max(1, part_bytes // engine.block_bytes)
        self._report = report
        self._wanted: set[int] = set()  # fetches under way that somebody waits for
        self._turned: set[int] = set()  # and from its end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def begin(self, fetch: Fetch) -> None:
        self._wanted.add(fetch.id)
        self._thread.submit(self._bring, fetch)

    def abandon(self, fetch_id: int) -> None:
        self._wanted.discard(fetch_id)

    def turn(self, fetch_id: int) -> None:
        if fetch_id in self._wanted:
            self._turned.add(fetch_id)

    def close(self) -> None:
        """Waits for what is under way; what waits is not begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _bring(self, fetch: Fetch) -> None:
        front, back, failure, turned = 0, 0, "", False
        parts = deque(self._parts(fetch))
        try:
            while parts and fetch.id in self._wanted:
                if turned := fetch.id in self._turned:
                    back += self._bring_part(parts.pop())
                else:
                    front += self._bring_part(parts.popleft())
                if parts:
                    self._report(Arrival(fetch.id, front, over=False, back=back))
        except _Missed as missed:
            front, failure = front + (0 if turned else missed.arrived), missed.why
        except Exception as error:  # the thread lives, and an end is owed
            failure = type(error).__name__
        self._wanted.discard(fetch.id)
        self._turned.discard(fetch.id)
        self._report(Arrival(fetch.id, front, True, failure, back))

    def _parts(self, fetch: Fetch) -> Iterator[tuple[Piece, ...]]:
        for i in range(0, len(fetch.pieces), self._part):
            yield fetch.pieces[i : i + self._part]

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
        self, engine: Engine, copies: Copies, report: Report, condemn: Callable[[int], None]
    ) -> None:
        """``condemn``: told of a slot whose copy is wrong."""
        super().__init__(engine, report, "host-tier", copies.part_bytes)
        self._copies = copies
        self._condemn = condemn

    def _bring_part(self, pieces: tuple[Piece, ...]) -> int:
        stocks = [piece.stock for piece in pieces]
        blocks = [piece.block for piece in pieces]
        good = self._copies.up([stock.slot for stock in stocks], blocks, [stock.sum for stock in stocks])
        if good < len(pieces):
            self._condemn(stocks[good].slot)
            raise _Missed(good, "corrupt")
        return good


class DiskCarrier(_Carrier):
    def __init__(self, engine: Engine, store: DiskStore, report: Report, complaints: Complaints) -> None:
        super().__init__(engine, report, "disk-tier", _DISK_BYTES)
        self._store = store
        self._complaints = complaints
        self._slab = engine.host_memory(self._part * engine.block_bytes)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="disk-reader")

    def close(self) -> None:
        super().close()
        self._readers.shutdown()

    def _bring_part(self, pieces: tuple[Piece, ...]) -> int:
        size, share, good, why = self._engine.block_bytes, -(-len(pieces) // READERS), 0, ""
        reading = [
            self._readers.submit(self._read_some, pieces[at : at + share], self._slab[at * size :])
            for at in range(0, len(pieces), share)
        ]
        wait(reading)  # for each: nothing is read into the slab any more
        for each in reading:
            read, why = each.result()
            good += read
            if why:
                break
        if good:
            self._engine.write_blocks([piece.block for piece in pieces[:good]], self._slab[: good * size])
        if why:
            raise _Missed(good, why)
        return good

    def _read_some(self, pieces: tuple[Piece, ...], slab: memoryview) -> tuple[int, str]:
        """How many leading ones, and what is wrong with the next."""
        size = self._engine.block_bytes
        for i, piece in enumerate(pieces):
            if why := self._read(piece, slab[i * size : (i + 1) * size]):
                return i, why
        return len(pieces), ""

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
