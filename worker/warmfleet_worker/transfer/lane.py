"""Lanes: how blocks move between processes of one host without a socket for their bytes.

A lane is a few slabs that the source fills and the target looks into. A connection, a Unix socket, carries
questions, sums and what opens the lane, never blocks:

    target: HELLO   as on a data port
    source: WELCOME magic, bytes of a block, blocks of the lease, slabs, bytes of each; then the handle
    target: ASK     first, count, slab             as many under way as there are slabs
    source: ANSWER  first, count, sums             in the order of the questions; count 0: the lease has ended

A slab is the target's from its answer until it is asked for again, so nothing is overwritten that is still
read. The source begins to fill every slab that it was asked for before it waits for the first: where a
device does the work, the next one is under way while this one is answered. What a lane is made of is its
driver's: shared memory, device memory that peers map, or memory that a network card reads.
"""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple, Protocol

from warmfleet_proto.errors import Corrupt

from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Busy, Filling, Lot

_MAGIC = b"WFL1"
_WELCOME = Struct("<4sQIIQ")
_ASK = Struct("<III")

ASK_BYTES = _ASK.size
_MOST_SLABS = 16
_MOST_SLAB_BYTES = 512 << 20  # or two blocks

Landing = Callable[[], list[bytes]]
"""Waits until the blocks are in the pool; the sums of what was written."""


class Shape(NamedTuple):
    slabs: int
    slab_bytes: int


class Lane(Protocol):
    """The source's end: filled by one thread at a time."""

    @property
    def shape(self) -> Shape: ...

    def show(self, stream: TcpStream) -> None:
        """Sends what opens it."""

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        """Blocks into a slab, readable by the target when this was waited for. Several slabs may be begun
        before the first is waited for, each of which is, in their order."""

    def close(self) -> None: ...


class Window(Protocol):
    """The target's end of a lane."""

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        """The slab's first blocks into these of the pool."""

    def close(self) -> None: ...


class Lanes(Protocol):
    """A kind of lane, between pools of one layout."""

    @property
    def name(self) -> str: ...

    @property
    def streams(self) -> int:
        """How many threads a pull is worth, at most."""

    @property
    def leaves_the_host(self) -> bool:
        """Whether other hosts can open them."""

    def make(self) -> Lane:
        """Raises MemoryError."""

    def open(self, stream: TcpStream, shape: Shape) -> Window:
        """What ``show`` sent. Raises WorkerLost when it cannot be opened from here."""

    def close(self) -> None:
        """Nothing is open any more."""


def fetched(lot: Lot, first: int, count: int, slab: memoryview) -> Filling:
    """Blocks of a lot into a slab of the host's memory: all is done by who waits."""
    return lambda: _fetch(lot, first, count, slab)


def _fetch(lot: Lot, first: int, count: int, slab: memoryview) -> list[bytes] | None:
    parcel = lot.fetch(first, count, slab)
    if parcel is None:
        return None
    at = 0
    for part in parcel.parts:
        if part.obj is not slab.obj:  # it lies elsewhere in the host's memory
            slab[at : at + len(part)] = part
        at += len(part)
    return parcel.sums


def send_welcome(stream: TcpStream, block_bytes: int, blocks: int, shape: Shape) -> None:
    stream.send([_WELCOME.pack(_MAGIC, block_bytes, blocks, *shape)])


def receive_welcome(stream: TcpStream, block_bytes: int, blocks: int) -> Shape:
    """Raises Corrupt when the source means other blocks, Busy when it has no lane to spare."""
    magic, its_bytes, its_blocks, slabs, slab_bytes = _WELCOME.unpack(stream.receive(_WELCOME.size))
    if magic != _MAGIC or its_bytes != block_bytes or its_blocks < blocks:
        raise Corrupt(f"the source offers {its_blocks} blocks of {its_bytes} bytes")
    if not slabs:
        raise Busy("the source has no lane to spare")
    if slabs > _MOST_SLABS or not block_bytes <= slab_bytes <= max(_MOST_SLAB_BYTES, 2 * block_bytes):
        raise Corrupt(f"the source's lane has {slabs} slabs of {slab_bytes} bytes")
    return Shape(slabs, slab_bytes)


def ask(first: int, count: int, slab: int) -> bytes:
    return _ASK.pack(first, count, slab)


def read_ask(data: bytes, blocks: int, most: int, slabs: int) -> tuple[int, int, int]:
    """First, count and slab. Raises Corrupt for what is not in the lease or the lane."""
    first, count, slab = _ASK.unpack(data)
    if not 0 < count <= most or first + count > blocks or slab >= slabs:
        raise Corrupt(f"blocks {first} and {count} more in slab {slab}: the lease has {blocks}")
    return first, count, slab
