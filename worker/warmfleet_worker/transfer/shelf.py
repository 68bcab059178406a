"""What the transports' threads see of leases: blocks copied out of the pool, or not at all.

A block may be taken for something else while it is being copied, when its lease ends in between. So the
lease is looked at again after the copy, and a copy that may be torn never leaves.
"""

from collections.abc import Callable

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.transfer.frames import block_sum, seed
from warmfleet_worker.transfer.leases import Lease, Leases
from warmfleet_worker.transfer.transport import Lot, Parcel


class PoolShelf:
    """See ``transport.Shelf``. ``clock`` is the worker's."""

    def __init__(self, leases: Leases, engine: Engine, clock: Callable[[], float]) -> None:
        self.given_bytes = 0
        self._leases = leases
        self._engine = engine
        self._clock = clock

    def open(self, lease: int, secret: bytes) -> Lot | None:
        found = self._leases.of(lease, secret, self._clock())
        return None if found is None else _PoolLot(self, found)

    def fetch(self, lease: Lease, first: int, count: int, slab: memoryview) -> Parcel | None:
        if not self._leases.holds(lease, first, count, self._clock()):
            return None
        lent, size = lease.lent[first : first + count], self._engine.block_bytes
        self._engine.read_blocks([each.block for each in lent], slab)
        parts = [slab[i * size : (i + 1) * size] for i in range(count)]
        sums = [block_sum(part, seed(each.hash)) for part, each in zip(parts, lent, strict=True)]
        if not self._leases.holds(lease, first, count, self._clock()):
            return None
        self.given_bytes += count * size
        return Parcel([slab[: count * size]], sums)

    @property
    def block_bytes(self) -> int:
        return self._engine.block_bytes


class _PoolLot:
    def __init__(self, shelf: PoolShelf, lease: Lease) -> None:
        self.block_bytes = shelf.block_bytes
        self.blocks = len(lease.lent)
        self._shelf = shelf
        self._lease = lease

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        return self._shelf.fetch(self._lease, first, count, slab)
