"""The source's end of a transport over lanes: fills slabs for the peers of this host."""

import logging
from collections import deque
from threading import Lock

from warmfleet_proto.errors import Corrupt
from warmfleet_proto.limits import LEASE_TTL_S

from warmfleet_worker.transfer import frames, lane
from warmfleet_worker.transfer.data_port import DataPort
from warmfleet_worker.transfer.lane import Lane, Lanes, Shape
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot, Shelf

_log = logging.getLogger(__name__)

_NONE = Shape(0, 0)


class LaneSource(DataPort):
    """At most ``most`` lanes, made when they are first needed and kept for the next pull."""

    def __init__(self, shelf: Shelf, lanes: Lanes, most: int) -> None:
        super().__init__(shelf)
        self._lanes = lanes
        self._left = most
        self._spare: list[Lane] = []
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._lanes.name

    @property
    def leaves_the_host(self) -> bool:
        return self._lanes.leaves_the_host

    def close(self) -> None:
        super().close()
        while self._spare:
            self._spare.pop().close()

    def _answer(self, stream: TcpStream) -> None:
        if stream.is_another_users:
            raise Corrupt("the target is another user's")
        lot = self._opened(stream)
        taken = self._take()
        shape = _NONE if taken is None else taken.shape
        lane.send_welcome(stream, lot.block_bytes, lot.blocks, shape)
        if taken is None:
            return
        try:
            taken.show(stream)
            self._serve_lot(stream, lot, taken)
        finally:
            with self._lock:
                self._spare.append(taken)

    def _serve_lot(self, stream: TcpStream, lot: Lot, taken: Lane) -> None:
        slabs, most = taken.shape.slabs, taken.shape.slab_bytes // lot.block_bytes
        under_way: deque[tuple[int, Filling]] = deque()
        stream.patience(LEASE_TTL_S)  # a target asks again when it has landed what it has
        try:
            while True:
                if not under_way or (len(under_way) < slabs and stream.has_more):
                    question = stream.receive(lane.ASK_BYTES)
                    first, count, slab = lane.read_ask(question, lot.blocks, most, slabs)
                    under_way.append((first, taken.fill(slab, lot, first, count)))
                else:
                    first, filling = under_way.popleft()
                    stream.send([frames.answer(first, filling() or [])])
        finally:
            for _, filling in under_way:  # before the lane is another's
                filling()

    def _take(self) -> Lane | None:
        """None when as many pulls are under way as there may be lanes, or memory is short."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
            if not self._left:
                return None
            self._left -= 1
        try:
            return self._lanes.make()
        except Exception as error:  # of memory, or of a device: each has its own
            _log.warning("no lane for %s: %s", self.name, error)
            with self._lock:
                self._left += 1
            return None
