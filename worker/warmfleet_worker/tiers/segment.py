"""One file of stored blocks: appended to, cut where it is torn, read by offset from any thread."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from warmfleet_proto.errors import Corrupt
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.tiers import format
from warmfleet_worker.tiers.format import Buffer, Header, Identity, Place
from warmfleet_worker.tiers.made import Made

_VECTORS = 512  # buffers a write; the system takes 1,024


class Segment:
    """``places`` is what it held when opened. The descriptor is closed when nobody holds the object."""

    def __init__(self, path: Path, descriptor: int, made: Made, size: int, start: int) -> None:
        self.path = path
        self.made = made
        self.size = size  # of preamble and records
        self.start = start  # of the first record
        self.complete = False  # has its index: nothing is appended
        self.places: list[Place] = []
        self.spoilt: list[int] = []  # offsets of records that it held then, whose headers are not whole
        self._descriptor = descriptor
        self._header_bytes = format.header_bytes(made.block_size)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)

    @property
    def record_bytes(self) -> int:
        return self._header_bytes + self.made.block_bytes

    @classmethod
    def create(cls, path: Path, made: Made) -> "Segment":
        """Raises OSError."""
        preamble = format.preamble(made)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        segment = cls(path, descriptor, made, 0, len(preamble))
        try:
            segment._write([preamble])
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return segment

    @classmethod
    def open(cls, path: Path, writable: bool) -> "Segment":
        """Finds what is whole in it and, where it may, cuts off the rest. Raises OSError, and Corrupt when
        not even the preamble is whole."""
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            made, start = _preamble(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        segment = cls(path, descriptor, made, start, start)
        length = os.fstat(descriptor).st_size
        segment.complete = segment._read_index(length)
        if not segment.complete:
            segment._scan(length)
            if writable and segment.size < length:
                os.ftruncate(descriptor, segment.size)
        return segment

    def expect(self, here: Made) -> None:
        """Raises ConfigError when its copies are of no use ``here``."""
        if why := self.made.differs(here):
            raise ConfigError(f"{self.path}: {why}")

    def append(self, blocks: Sequence[tuple[Identity, bytes, Buffer]]) -> list[Place]:
        """Identity, token ids and copy of each. Raises OSError, and then nothing was appended."""
        assert not self.complete
        buffers: list[Buffer] = []
        places, offset = [], self.size
        for identity, token_ids, copy in blocks:
            buffers += format.header(identity, token_ids, copy, self.made), copy
            places.append(Place(identity, offset))
            offset += self.record_bytes
        self._write(buffers)
        return places

    def finish(self, places: Sequence[Place]) -> None:
        """Writes the index, so that the next opening need not scan. Raises OSError."""
        self.complete = True
        end = self.size
        self._write([format.index(places, end)])
        self.size = end

    def read(self, offset: int, copy: Buffer) -> Header:
        """The record at ``offset``, its copy's bytes into ``copy``, not checked yet. Raises OSError, and
        Corrupt where no header is."""
        header = bytearray(self._header_bytes)
        count = os.preadv(self._descriptor, [header, copy], offset)
        if count < self.record_bytes:
            raise Corrupt("the record is cut short")
        return format.read_header(bytes(header), self.made)

    def header(self, offset: int) -> Header:
        """The header of the record at ``offset``. Raises OSError and Corrupt."""
        return format.read_header(os.pread(self._descriptor, self._header_bytes, offset), self.made)

    def foretell(self, offset: int) -> None:
        """The record at ``offset`` will be read soon: the system may begin."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, offset, self.record_bytes, os.POSIX_FADV_WILLNEED)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        """All or nothing, at the end."""
        at = self.size
        try:
            for i in range(0, len(buffers), _VECTORS):
                at += _write_all(self._descriptor, buffers[i : i + _VECTORS], at)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size = at

    def _read_index(self, length: int) -> bool:
        """False when there is none that can be trusted."""
        size = format.TRAILER.size
        if length < self.start + size:
            return False
        offset = format.index_offset(os.pread(self._descriptor, size, length - size))
        if offset is None or not self.start <= offset < length:
            return False
        try:
            self.places = format.read_index(os.pread(self._descriptor, length - offset, offset))
        except Corrupt:
            return False
        self.size = offset
        return True

    def _scan(self, length: int) -> None:
        """Reads the file by the headers of its records. A spoilt header loses its own block only; what
        follows the last whole record is a torn tail."""
        spoilt: list[int] = []
        for offset in range(self.start, length - self.record_bytes + 1, self.record_bytes):
            try:
                found = format.read_header(os.pread(self._descriptor, self._header_bytes, offset), self.made)
            except Corrupt:
                spoilt.append(offset)
                continue
            self.places.append(Place(found.identity, offset))
            self.size = offset + self.record_bytes
        self.spoilt = [offset for offset in spoilt if offset < self.size]


def _preamble(descriptor: int) -> tuple[Made, int]:
    start = os.pread(descriptor, format.PREAMBLE.size, 0)
    if len(start) < format.PREAMBLE.size:
        raise Corrupt("the preamble is cut short")
    length = format.preamble_bytes(start)
    return format.read_preamble(os.pread(descriptor, length, 0)), length


def _write_all(descriptor: int, buffers: Sequence[Buffer], at: int) -> int:
    """How many bytes. Raises OSError."""
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    done = 0
    while views:
        count = os.pwritev(descriptor, views, at + done)
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
    return done
