"""The source's end of the tcp transport: a data port that answers for the blocks of live leases."""

import ssl
from collections.abc import Callable

from warmfleet_proto.limits import LEASE_TTL_S

from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.data_port import DataPort
from warmfleet_worker.transfer.tcp_stream import STALL_S, TcpStream
from warmfleet_worker.transfer.throttle import Throttle
from warmfleet_worker.transfer.transport import Lot, Shelf


class TcpSource(DataPort):
    """``allocate`` gives the memory that blocks are sent from, pinned where they lie on a GPU."""

    def __init__(
        self,
        shelf: Shelf,
        tls: ssl.SSLContext | None = None,
        throttle: Throttle | None = None,
        allocate: Callable[[int], memoryview] = lambda n: memoryview(bytearray(n)),
    ) -> None:
        super().__init__(shelf, tls)
        self._throttle = throttle
        self._allocate = allocate

    def _answer(self, stream: TcpStream) -> None:
        lot = self._opened(stream)
        stream.send([frames.welcome(lot.block_bytes, lot.blocks)])
        most = frames.piece_blocks(lot.block_bytes, frames.DEVICE_PIECE_BYTES)  # as the target likes
        slab = self._allocate(min(most, lot.blocks) * lot.block_bytes)
        while True:
            stream.patience(LEASE_TTL_S)  # a target that is out of slabs asks again when it has landed some
            first, count = frames.read_ask(stream.receive(frames.RANGE_BYTES), lot.blocks, most)
            stream.patience(STALL_S)
            self._send(stream, lot, first, count, slab)

    def _send(self, stream: TcpStream, lot: Lot, first: int, count: int, slab: memoryview) -> None:
        parcel = lot.fetch(first, count, slab)
        if parcel is None:
            stream.send([frames.answer(first, [])])
        elif self._throttle is None:
            stream.send([frames.answer(first, parcel.sums), *parcel.parts])
        else:
            stream.send([frames.answer(first, parcel.sums)])
            for part in parcel.parts:
                for piece in self._throttle.slices(part):
                    stream.send([piece])
