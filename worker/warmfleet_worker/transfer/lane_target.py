"""The target's end of a transport over lanes: asks for slabs to be filled, and lands them in the pool."""

import socket
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.transfer_pb2 import Offer

from warmfleet_worker.transfer import frames, lane
from warmfleet_worker.transfer.here import here
from warmfleet_worker.transfer.lane import Landing, Lanes, Window
from warmfleet_worker.transfer.tcp_stream import STALL_S, TcpStream, connect
from warmfleet_worker.transfer.transport import Address, Haul, Piece

_FIRST = 2  # slabs asked for at once: the source begins to fill all of them before it answers the first
_MOST_AHEAD = 64  # connections that wait for their pull
_ALL = 1 << 30


class LaneTarget:
    """See ``transport.Transport``."""

    staged = False

    def __init__(self, lanes: Lanes) -> None:
        self.name = lanes.name
        self.streams = lanes.streams
        self._lanes = lanes
        self._ahead: dict[str, TcpStream] = {}  # by the source's socket
        self._lock = Lock()

    def reaches(self, offer: Offer) -> bool:
        if self._lanes.leaves_the_host:
            return bool(offer.port)
        return bool(offer.socket) and bool(offer.host) and offer.host == here()

    def dial(self, offer: Offer) -> None:
        """Connects ahead of the pull that is about to come, within the host."""
        if offer.socket and len(self._ahead) < _MOST_AHEAD:
            with suppress(WorkerLost):
                stream = _connect(offer.socket)
                with self._lock:
                    before, self._ahead[offer.socket] = self._ahead.pop(offer.socket, None), stream
                if before is not None:
                    before.close()

    def close(self) -> None:
        """No pull comes any more."""
        with self._lock:
            while self._ahead:
                self._ahead.popitem()[1].close()

    def pull(self, host: str, offer: Offer, lease: int, secret: bytes, haul: Haul) -> None:
        stream = self._stream(host, offer)
        try:
            if stream.is_another_users:
                raise WorkerLost("the source is another user's")
            stream.send([frames.hello(lease, secret)])
            shape = lane.receive_welcome(stream, haul.block_bytes, haul.blocks)
            window = self._lanes.open(stream, shape)
            try:
                _Drain(stream, window, haul, shape).run()
            finally:
                window.close()
        finally:
            stream.close()

    def _stream(self, host: str, offer: Offer) -> TcpStream:
        if not offer.socket:
            return connect(Address(host, offer.port), None)
        with self._lock:
            stream = self._ahead.pop(offer.socket, None)
        if stream is not None and not stream.has_more:
            return stream
        if stream is not None:
            stream.close()  # the source has waited for too long
        return _connect(offer.socket)


class _Asked(NamedTuple):
    piece: Piece
    slab: int


class _Landing(NamedTuple):
    piece: Piece
    slab: int
    sums: list[bytes]  # as the source made them
    landed: Landing


class _Drain:
    """One stream's loop: slabs are asked for, landing, or free, and one lands while the next is filled.

    What has landed is told of when the next one is waited for: whoever hears of it needs the interpreter's
    lock too, and that what lands has been begun first.
    """

    def __init__(self, stream: TcpStream, window: Window, haul: Haul, shape: lane.Shape) -> None:
        self._stream = stream
        self._window = window
        self._haul = haul
        self._most = shape.slab_bytes // haul.block_bytes
        self._free = deque(range(shape.slabs))
        self._asked: deque[_Asked] = deque()
        self._landing: deque[_Landing] = deque()
        self._landed: list[tuple[Piece, int]] = []

    def run(self) -> None:
        try:
            self._ask(_FIRST)
            while not self._haul.over:
                if self._asked:
                    self._start()
                    self._ask()
                if len(self._landing) > bool(self._asked):
                    self._land()
                    self._ask()
                if not self._asked and not self._landing:
                    return
        finally:
            self._give_up()

    def _ask(self, most: int = _ALL) -> None:
        """Asks for pieces, with ``most`` slabs under way at most."""
        while self._free and len(self._asked) < most:
            piece = self._haul.take(self._most)
            if piece is None:
                return
            slab = self._free.popleft()
            self._asked.append(_Asked(piece, slab))
            self._stream.send([lane.ask(piece.first, piece.blocks, slab)])

    def _start(self) -> None:
        piece, slab = self._asked[0]
        if not frames.is_answer(self._stream.receive(frames.RANGE_BYTES), piece.first, piece.blocks):
            raise WorkerLost("the lease has ended")
        data, size = self._stream.receive(piece.blocks * frames.SUM_BYTES), frames.SUM_BYTES
        sums = [data[at : at + size] for at in range(0, len(data), size)]
        landed = self._window.start(slab, piece.targets, piece.seeds)
        self._asked.popleft()
        self._landing.append(_Landing(piece, slab, sums, landed))

    def _land(self) -> None:
        piece, slab, wanted, landed = self._landing.popleft()
        self._tell()
        try:
            sums = landed()
        except WorkerLost:
            self._haul.lost(piece)
            raise
        self._free.append(slab)
        self._haul.received(piece.blocks * self._haul.block_bytes)
        pairs = enumerate(zip(sums, wanted, strict=True))
        good = piece.blocks if sums == wanted else next(n for n, (its, ours) in pairs if its != ours)
        self._landed.append((piece, good))

    def _tell(self) -> None:
        while self._landed:
            self._haul.landed(*self._landed.pop())

    def _give_up(self) -> None:
        """What has begun to land ends before anybody else may have its blocks."""
        while self._landing:
            with suppress(WorkerLost):
                self._land()
        self._tell()
        for piece, _ in self._asked:
            self._haul.lost(piece)


def _connect(name: str) -> TcpStream:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(STALL_S)
        peer.connect(f"\0{name}")
        return TcpStream(peer)
    except OSError as error:
        peer.close()
        raise WorkerLost(f"no source behind {name}: {error.strerror}") from None
