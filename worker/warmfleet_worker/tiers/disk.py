"""The disk tier: blocks in a folder of append-only segments, bounded, the oldest segment given up first.

One thread writes; any may read. Wrong bytes are a miss and are forgotten; an operating system's error is the
caller's to handle: what is stored stays.
"""

import contextlib
import errno
import fcntl
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from warmfleet_proto.errors import Corrupt
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.events import Appeared, Change, Tier, Vanished
from warmfleet_worker.tiers import format
from warmfleet_worker.tiers.catalogue import Catalogue, Entry
from warmfleet_worker.tiers.format import Buffer, Identity, Place
from warmfleet_worker.tiers.made import Made
from warmfleet_worker.tiers.segment import Segment

_log = logging.getLogger(__name__)

_SEGMENTS = 16  # that the capacity is divided into
_LEAST_SEGMENT_BYTES = 1 << 20
_LOCK = "lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Stored(NamedTuple):
    identity: Identity
    token_ids: bytes
    copy: Buffer


class Record:
    """A block where it was found: readable as long as somebody has this, whatever becomes of its file."""

    def __init__(self, store: "DiskStore", entry: Entry, segment: Segment, token_ids: bytes) -> None:
        self.token_ids = token_ids
        self._store = store
        self._entry = entry
        self._segment = segment

    @property
    def root(self) -> bytes:
        return self._entry.identity.root

    def foretell(self) -> None:
        """It will be read soon: the system may begin."""
        self._segment.foretell(self._entry.offset)

    def read(self, copy: memoryview) -> None:
        """Its bytes, proven. Raises OSError, and Corrupt."""
        self._store.read(self._entry, self._segment, self.token_ids, copy)


class DiskStore:
    def __init__(self, folder: Path, made: Made, capacity: int, *, read_only: bool = False) -> None:
        """``capacity``: bytes of all segments. Raises ConfigError when the folder cannot be used."""
        self.made = made
        self.capacity = capacity
        self.catalogue = Catalogue()
        self.corrupt = 0  # blocks found to be wrong
        self.lost: list[str] = []  # where something lies, as it was opened, that nobody can read
        self.read_only = read_only
        self._folder = folder
        self._segments: dict[int, Segment] = {}  # oldest first
        self._last = 0  # the highest number of any file
        self._changing = threading.Lock()  # of the catalogue, the segments and the changes
        self._changes: list[Change] = []
        self._lock = None if read_only else self._claim()
        self._segment_bytes = max(capacity // _SEGMENTS, _LEAST_SEGMENT_BYTES)
        try:
            with _no_collection():
                self._open()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def used_bytes(self) -> int:
        return sum(segment.size for segment in list(self._segments.values()))

    @property
    def segments(self) -> int:
        return len(self._segments)

    def take_changes(self) -> list[Change]:
        """What can be read now, or no longer, since the last call; the first names all. From any thread."""
        with self._changing:
            changes, self._changes = self._changes, []
        return changes

    def close(self) -> None:
        """Completes nothing: what was appended is there."""
        self._segments.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- reading, from any thread ----------------------------------------------------------------

    def get(self, block_hash: bytes, token_ids: bytes | None, copy: Buffer) -> format.Header | None:
        """The block's bytes into ``copy``; None when it is not there (any more). ``token_ids``: those that it
        must stand for. Raises OSError, and Corrupt when it is not what it should be: it is forgotten then."""
        found = self._find(block_hash)
        return None if found is None else self.read(*found, token_ids, copy)

    def read(self, entry: Entry, segment: Segment, token_ids: bytes | None, copy: Buffer) -> format.Header:
        """The same where it is known where the block lies."""
        try:
            header = segment.read(entry.offset, copy)
            format.check(header, entry.identity, token_ids, copy)
        except Corrupt:
            with self._changing:
                self.corrupt += 1
                self._remove(entry)
            raise
        return header

    def records(self, root: bytes, hashes: Sequence[bytes], within_s: float) -> dict[bytes, "Record"]:
        """Records of the leading ``hashes``, by hash: of as many as are there and are found in time."""
        records: dict[bytes, Record] = {}
        until = time.monotonic() + within_s
        for block_hash in hashes:
            found = self._find(block_hash)
            if found is None or found[0].identity.root != root or time.monotonic() >= until:
                break
            try:
                header = found[1].header(found[0].offset)
            except (Corrupt, OSError):
                break
            found[0].used = True
            records[block_hash] = Record(self, *found, header.token_ids)
        return records

    def _find(self, block_hash: bytes) -> tuple[Entry, Segment] | None:
        with self._changing:
            entry = self.catalogue.get(block_hash)
            segment = self._segments.get(entry.segment) if entry else None
        return None if entry is None or segment is None else (entry, segment)

    # ---- writing, from one thread ----------------------------------------------------------------

    def put(self, blocks: Sequence[Stored]) -> None:
        """Appends those that are not there; the oldest segments make room. Raises OSError when the disk does
        not take them."""
        assert not self.read_only
        blocks = [block for block in blocks if self.catalogue.get(block.identity.hash) is None]
        record_bytes = format.header_bytes(self.made.block_size) + self.made.block_bytes
        most = max(1, self._segment_bytes // record_bytes)
        for i in range(0, len(blocks), most):
            part = blocks[i : i + most]
            self._make_room(len(part) * record_bytes)
            number = self._current()
            places = self._segments[number].append(part)
            with self._changing:
                for place in places:
                    self._add(place, number)

    def collect(self, most: int) -> None:
        """Gives up segments, the oldest first, until ``most`` bytes are left. Raises OSError."""
        while self.used_bytes > most and self._segments:
            self._give_up(next(iter(self._segments)), survivors=0)

    def _make_room(self, wanted: int) -> None:
        while self.used_bytes + wanted > self.capacity and len(self._segments) > 1:
            oldest = next(iter(self._segments))
            blocks = len(self.catalogue.of_segment(oldest))
            self._give_up(oldest, survivors=blocks // 2)

    def _give_up(self, number: int, survivors: int) -> None:
        """Deletes a segment; at most so many of its blocks move to the newest one before. Raises OSError,
        and then it is still there."""
        segment = self._segments[number]
        try:
            self._move(self.catalogue.survivors(number, survivors), segment)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            _log.warning("disk_path: no room to keep what was used of %s", segment.path)
        segment.path.unlink(missing_ok=True)  # whoever reads in it has it open
        with self._changing:
            del self._segments[number]
            for entry in self.catalogue.of_segment(number):
                self._remove(entry)

    def _add(self, place: Place, number: int) -> None:
        if self.catalogue.add(place, number):
            self._changes.append(_appeared(place))

    def _remove(self, entry: Entry) -> None:
        if self.catalogue.remove(entry):
            self._changes.append(Vanished(entry.identity.hash, Tier.DISK))

    def _move(self, entries: Sequence[Entry], source: Segment) -> None:
        number = self._current()
        for entry in entries:
            copy = bytearray(self.made.block_bytes)
            try:
                header = source.read(entry.offset, copy)
                format.check(header, entry.identity, None, copy)
            except Corrupt:
                self.corrupt += 1
                continue
            places = self._segments[number].append([(entry.identity, header.token_ids, copy)])
            with self._changing:
                self._add(places[0], number)

    def _current(self) -> int:
        """The segment to append to. Raises OSError."""
        number = self._last
        segment = self._segments.get(number)
        if segment is None or segment.complete:
            return self._begin()
        if segment.size + segment.record_bytes <= self._segment_bytes or segment.size == segment.start:
            return number
        segment.finish([Place(e.identity, e.offset) for e in self.catalogue.of_segment(number)])
        return self._begin()

    def _begin(self) -> int:
        number = self._last + 1
        path = self._folder / f"{number:08}{format.SUFFIX}"
        with self._changing:
            self._segments[number] = Segment.create(path, self.made)
            self._last = number
        return number

    # ---- opening ---------------------------------------------------------------------------------

    def _claim(self) -> int | None:
        """The lock of the folder; None, and reading only, where nothing can be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if not self._folder.is_dir():
                raise ConfigError(f"disk_path: {self._folder}: {error.strerror}") from None
            _log.warning("disk_path: %s can only be read: %s", self._folder, error.strerror)
            self.read_only = True
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise ConfigError(f"disk_path: {self._folder} is in use by another worker") from None
        return lock

    def _open(self) -> None:
        for path in sorted(self._folder.glob(f"*{format.SUFFIX}")):
            if not path.stem.isdigit():
                continue
            self._last = number = int(path.stem)
            try:
                segment = Segment.open(path, writable=not self.read_only)
            except Corrupt as error:
                self._pass_over(path, error)
                continue
            except OSError as error:
                raise ConfigError(f"disk_path: {path}: {error.strerror}") from None
            segment.expect(self.made)
            self.lost += [f"segment {number}: no header at byte {offset}" for offset in segment.spoilt]
            self._segments[number] = segment
            if self.catalogue.load(segment.places, number):
                self._changes += [_appeared(place) for place in segment.places]
            else:
                for place in segment.places:
                    self._add(place, number)
            segment.places = []

    def _pass_over(self, path: Path, error: Corrupt) -> None:
        """A segment without a beginning holds nothing that could be read: one that was just begun when the
        process died, as a rule. Other people's files are left alone."""
        with path.open("rb") as file:
            start = file.read(format.PREAMBLE.size)
        ours = format.begins(start[:8])
        if len(start) == format.PREAMBLE.size:
            self.lost.append(f"{path}: {error}")
        _log.warning("disk_path: %s is passed over: %s", path, error)
        if ours and not self.read_only:
            path.unlink(missing_ok=True)


def made_in(folder: Path) -> Made:
    """What the blocks of a folder were made with. Raises ConfigError when there are none."""
    for path in sorted(folder.glob(f"*{format.SUFFIX}")):
        with contextlib.suppress(Corrupt):
            return Segment.open(path, writable=False).made
    raise ConfigError(f"{folder} holds no KV blocks")


def _appeared(place: Place) -> Appeared:
    block_hash, parent, _, depth = place.identity
    return Appeared(block_hash, parent, depth, Tier.DISK)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Half of the time of an opening went into walks over entries that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
