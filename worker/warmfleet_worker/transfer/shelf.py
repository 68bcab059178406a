"""What the transports' threads see of leases: blocks copied out of the pool, or not at all.

A block may be taken for something else while it is being copied, when its lease ends in between. So the
lease is looked at again after the copy, and a copy that may be torn never leaves. What lies in the host's
memory leaves from there: torn while it is sent it disagrees with its sum at the other end.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

from warmfleet_proto.errors import Corrupt

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.events import Tier
from warmfleet_worker.prefix import Node
from warmfleet_worker.transfer.frames import block_sum, seed, seeds
from warmfleet_worker.transfer.leases import Lease, Leases, Lent, Stored
from warmfleet_worker.transfer.transport import Fill, Filling, Lot, Parcel

_AHEAD_BYTES = 64 << 20  # of what lies on disk is being read while the target has what comes before it


class Lower(Protocol):
    """The tiers below the device."""

    def copy(self, slot: int) -> memoryview:
        """A slot of the host's memory."""

    def whole(self, slot: int) -> bool:
        """Whether what is in it agrees with its sum."""

    def condemn(self, slot: int) -> None:
        """It does not, and is not read again."""

    def complain(self, error: Exception) -> None:
        """A block on disk could not be read, or is wrong."""


class PoolShelf:
    """See ``transport.Shelf``. ``clock`` is the worker's; ``lower`` where there are tiers below."""

    def __init__(
        self, leases: Leases, engine: Engine, clock: Callable[[], float], lower: Lower | None = None
    ) -> None:
        self.given_bytes = 0
        self._leases = leases
        self._engine = engine
        self._clock = clock
        self._lower = lower

    def open(self, lease: int, secret: bytes) -> Lot | None:
        found = self._leases.of(lease, secret, self._clock())
        return None if found is None else _PoolLot(self, found)

    def fetch(self, lease: Lease, first: int, count: int, slab: memoryview) -> Parcel | None:
        if not self._leases.holds(lease, first, count, self._clock()):
            return None
        lent, size = lease.lent[first : first + count], self._engine.block_bytes
        parts: list[memoryview] = []
        try:
            for tier, each in groupby(lent, lambda block: block.tier):
                parts += self._read(tier, tuple(each), slab[len(parts) * size :])
        except (Corrupt, OSError) as error:  # on disk: another lease finds what is left
            if self._lower is not None:
                self._lower.complain(error)
            return None
        self._foretell(lease, first + count)
        sums = [block_sum(part, seed(each.hash)) for part, each in zip(parts, lent, strict=True)]
        wrong = self._wrong(lent)
        if not self._leases.holds(lease, first, count, self._clock()):
            return None  # what is wrong may be something else by now
        if wrong:
            self._condemn(wrong)
            return None
        self.given_bytes += count * size
        in_slab = all(each.tier != Tier.HOST for each in lent)
        return Parcel([slab[: count * size]] if in_slab else parts, sums)

    def give(self, lease: Lease, first: int, count: int, fill: Fill) -> Filling:
        lent = lease.lent[first : first + count]
        if not lease.on_device or not self._leases.holds(lease, first, count, self._clock()):
            return lambda: None
        blocks = [each.block for each in lent if isinstance(each, Node)]
        wait = fill(blocks, seeds([each.hash for each in lent]))

        def given() -> list[bytes] | None:
            sums = wait()
            if not self._leases.holds(lease, first, count, self._clock()):
                return None
            self.given_bytes += count * self._engine.block_bytes
            return sums

        return given

    def _read(self, tier: Tier, lent: Sequence[Lent], slab: memoryview) -> list[memoryview]:
        """Where their bytes are, block by block. Raises OSError and Corrupt, of those on disk."""
        blocks = [each.block for each in lent if isinstance(each, Node)]
        if tier is Tier.HOST:
            assert self._lower is not None
            return [self._lower.copy(block) for block in blocks]
        size = self._engine.block_bytes
        parts = [slab[i * size : (i + 1) * size] for i in range(len(lent))]
        if blocks:
            self._engine.read_blocks(blocks, slab)
        for each, part in zip(lent, parts, strict=True):
            if isinstance(each, Stored):
                each.record.read(part)
        return parts

    def _wrong(self, lent: Sequence[Lent]) -> list[int]:
        """Slots of the host's memory that hold not what was put there: asked when the new sums are made."""
        in_host = [each.block for each in lent if isinstance(each, Node) and each.tier is Tier.HOST]
        return [slot for slot in in_host if self._lower and not self._lower.whole(slot)]

    def _condemn(self, slots: Sequence[int]) -> None:
        for slot in slots:
            assert self._lower is not None
            self._lower.condemn(slot)

    def _foretell(self, lease: Lease, after: int) -> None:
        ahead = max(1, _AHEAD_BYTES // self._engine.block_bytes)
        for each in lease.lent[max(after, lease.foretold) : after + ahead]:
            if isinstance(each, Stored):
                each.record.foretell()
        lease.foretold = max(lease.foretold, after + ahead)

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

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        return self._shelf.give(self._lease, first, count, fill)
