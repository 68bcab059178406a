"""What a transport is: how bytes of leased blocks get from a source to a target.

A transport knows nothing of prefixes, grants or schedulers. It asks the source's Shelf for the blocks of a
lease, and fills the target's Haul from the front. Both are called in the transport's own threads.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.transfer_pb2 import Offer

Fill = Callable[[Sequence[int], Sequence[int]], Callable[[], list[bytes]]]
"""Begins to copy the given blocks of the pool to where they can be sent from. What it returns waits until the
copy is there, and gives the blocks' sums, made with the given seeds."""

Filling = Callable[[], list[bytes] | None]
"""Waits until a copy that was begun is there. Gives the blocks' sums; None if the lease has ended
meanwhile."""


class Lot(Protocol):
    """The blocks of one live lease."""

    @property
    def block_bytes(self) -> int: ...
    @property
    def blocks(self) -> int: ...

    def fetch(self, first: int, count: int, slab: memoryview) -> "Parcel | None":
        """``count`` blocks from ``first`` on, as they lie in memory or copied into ``slab``; None once the
        lease has ended. What is returned stays valid until the next call."""

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        """The same for blocks that all lie on the device, which the transport copies itself (``fill``)."""


class Parcel(NamedTuple):
    parts: Sequence[memoryview]  # in order; together exactly the blocks
    sums: list[bytes]  # of each block


class Shelf(Protocol):
    def open(self, lease: int, secret: bytes) -> Lot | None:
        """None where there is no such lease, or its secret is another."""


class Piece(NamedTuple):
    """Consecutive blocks, and where they go in the end."""

    first: int
    seeds: Sequence[int]  # of their sums, one a block
    targets: Sequence[int]  # blocks of the pool

    @property
    def blocks(self) -> int:
        return len(self.seeds)


class Haul(Protocol):
    """What one pull still wants."""

    @property
    def block_bytes(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def over(self) -> bool:
        """Nothing more is wanted: all is asked for, or the pull was given up."""

    def slab(self) -> memoryview | None:
        """Waits for memory that one stream's pieces pass through, if the transport does not write into the
        pool itself. To be given back. None if nothing is wanted any more."""

    def give_back(self, slab: memoryview) -> None:
        """The slab is free for other streams and pulls."""

    def take(self, most: int) -> Piece | None:
        """The next piece of at most ``most`` blocks. None if nothing is left, or if a slab of this pull is
        needed for another one."""

    def received(self, count: int) -> None:
        """So many bytes of blocks have come, whatever becomes of them."""

    def landed(self, piece: Piece, good: int, slab: memoryview | None = None) -> None:
        """The piece's bytes are in the slab, or in the pool where there is none, and the leading ``good``
        blocks agree with their sums."""

    def lost(self, piece: Piece) -> None:
        """Its bytes will not come."""


class Address(NamedTuple):
    host: str
    port: int


class Busy(WorkerLost):
    """The transport works, but its source has nothing to spare for one more pull now."""


class Transport(Protocol):
    """The target's end. ``pull`` blocks its thread."""

    @property
    def name(self) -> str: ...

    @property
    def staged(self) -> bool:
        """Whether its bytes pass through the haul's slabs; else it writes into the pool itself."""

    @property
    def streams(self) -> int:
        """How many threads a pull is worth, at most."""

    def reaches(self, offer: Offer) -> bool:
        """Whether what a source offers can be tried from here."""

    def dial(self, offer: Offer) -> None:
        """A pull is about to come, by what the source offered before: to be ready for it if that helps."""

    def close(self) -> None:
        """No pull comes any more."""

    def pull(self, host: str, offer: Offer, lease: int, secret: bytes, haul: Haul) -> None:
        """One stream: until the haul is over. Several streams may share a haul. ``host`` is that of the
        source's gRPC server. Raises WorkerLost when the connection fails or the lease has ended, Busy
        before anything has come, Corrupt when bytes are not what was asked for."""
