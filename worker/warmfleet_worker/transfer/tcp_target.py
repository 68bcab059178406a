"""The target's end of the tcp transport: asks for pieces, receives them into slabs, verifies their sums."""

import ssl
from collections import deque

from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.transfer_pb2 import Offer

from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.tcp_stream import TcpStream, connect
from warmfleet_worker.transfer.transport import Address, Haul, Piece

_UNDER_WAY = 2  # questions a stream, so that the source never waits for one


class TcpTarget:
    """See ``transport.Transport``."""

    name = "tcp"
    staged = True

    def __init__(self, tls: ssl.SSLContext | None = None, streams: int = 1) -> None:
        self.streams = streams
        self._tls = tls

    def reaches(self, offer: Offer) -> bool:
        return True

    def dial(self, offer: Offer) -> None:
        """Connecting takes little of what a pull takes."""

    def close(self) -> None:
        """Nothing is kept."""

    def pull(self, host: str, offer: Offer, lease: int, secret: bytes, haul: Haul) -> None:
        stream = connect(Address(host, offer.port), self._tls)
        try:
            stream.send([frames.hello(lease, secret)])
            frames.check_welcome(stream.receive(frames.WELCOME_BYTES), haul.block_bytes, haul.blocks)
            _receive_all(stream, haul)
        finally:
            stream.close()


def _receive_all(stream: TcpStream, haul: Haul) -> None:
    while (slab := haul.slab()) is not None:
        try:
            _receive_through(slab, stream, haul)
        finally:
            haul.give_back(slab)


def _receive_through(slab: memoryview, stream: TcpStream, haul: Haul) -> None:
    """Receives pieces through the slab, one after the other, until nothing is left or the slab is needed
    elsewhere."""
    asked: deque[Piece] = deque()
    most = frames.piece_blocks(haul.block_bytes, len(slab))
    try:
        while True:
            while len(asked) < _UNDER_WAY and (piece := haul.take(most)) is not None:
                asked.append(piece)
                stream.send([frames.ask(piece.first, piece.blocks)])
            if not asked or haul.over:
                return
            good = _receive(stream, asked[0], slab, haul)
            haul.landed(asked.popleft(), good, slab)
    finally:
        for piece in asked:
            haul.lost(piece)


def _receive(stream: TcpStream, piece: Piece, slab: memoryview, haul: Haul) -> int:
    """How many leading blocks agree with their sums. Each is summed while it is still in the core's cache."""
    if not frames.is_answer(stream.receive(frames.RANGE_BYTES), piece.first, piece.blocks):
        raise WorkerLost("the lease has ended")
    sums = stream.receive(piece.blocks * frames.SUM_BYTES)
    good, size = 0, haul.block_bytes
    for i, seed in enumerate(piece.seeds):
        if haul.over:
            raise WorkerLost("given up by the target")
        block = slab[i * size : (i + 1) * size]
        stream.receive_into(block)
        haul.received(size)
        wanted = sums[i * frames.SUM_BYTES : (i + 1) * frames.SUM_BYTES]
        good += good == i and frames.block_sum(block, seed) == wanted
    return good
