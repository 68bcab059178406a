"""Leases: blocks that are kept for a peer where they lie, each for at most LEASE_TTL_S.

On the device and in the host's memory they are pinned. A block on disk is kept by whoever has its record:
files are only appended to, and one that is deleted can be read while it is open.

Pure, and owned by the event loop; ``of`` and ``holds`` are also asked by the transports' threads, which
send a copy only if the lease still holds after the copy was made.
"""

import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct
from warmfleet_proto.limits import KEY_BYTES, LEASE_TTL_S

from warmfleet_worker.events import Tier
from warmfleet_worker.prefix import Node, PrefixCache, chain_to
from warmfleet_worker.tiers.host import HostTier
from warmfleet_worker.transfer.grant import Allowed
from warmfleet_worker.transfer.refusal import Refusal, Refused

MAX_LEASES = 256
_SHARE = 2  # leases may pin at most 1 / _SHARE of a pool


class Record(Protocol):
    """A block on disk."""

    @property
    def root(self) -> bytes: ...
    @property
    def token_ids(self) -> bytes: ...

    def foretell(self) -> None:
        """It will be read soon."""

    def read(self, copy: memoryview) -> None:
        """Its bytes, proven. Raises OSError, and Corrupt."""


class Stored(Struct, frozen=True, gc=False):
    """One block on disk: its record always holds it."""

    hash: bytes
    record: Record
    tier: Tier = Tier.DISK

    @property
    def token_ids(self) -> bytes:
        return self.record.token_ids


Lent = Node | Stored


@dataclass(slots=True, eq=False)
class Lease:
    id: int
    secret: bytes
    target: str
    until: float  # the blocks are not kept longer
    lent: Sequence[Lent]
    pinned: dict[Tier, list[int]]  # the lent blocks and those before them in their chain
    on_device: bool  # all that is lent
    live: bool = True
    foretold: int = 0  # of the lent blocks on disk: the system has been told to read them


class Leases:
    """``caches`` of the tiers that have a pool."""

    def __init__(self, device: PrefixCache, host: HostTier | None = None) -> None:
        self.caches = {Tier.DEVICE: device} | ({Tier.HOST: host.cache} if host else {})
        self._host = host
        self._leases: dict[int, Lease] = {}
        self._pins: dict[Tier, Counter[int]] = {tier: Counter() for tier in self.caches}  # by block

    def __len__(self) -> int:
        return len(self._leases)

    def held(self, tier: Tier = Tier.DEVICE) -> list[int]:
        """Every block that leases pin, as often as it is pinned."""
        return [block for lease in self._leases.values() for block in lease.pinned[tier]]

    def reach(self, root: bytes, hashes: Sequence[bytes]) -> int:
        """How many of ``hashes`` can be lent without any from the disk. Raises Refused."""
        return len(self._run(root, hashes, {}))

    def open(
        self,
        id: int,
        secret: bytes,
        target: str,
        allowed: Allowed,
        hashes: Sequence[bytes],
        now: float,
        records: Mapping[bytes, Record] | None = None,
    ) -> Lease | None:
        """Keeps the longest run of ``hashes``, which are granted, each from the nearest tier that has it;
        None when there is none. ``records``: of those on disk, by BlockHash.

        Raises Refused. ``id`` and ``secret`` are new and random.
        """
        assert id not in self._leases
        lent = self._run(allowed.root, hashes, records or {})
        if not lent:
            return None
        pinned = {tier: self._chain(tier, lent) for tier in self.caches}
        self._check_room(pinned)
        for tier, blocks in pinned.items():
            self.caches[tier].pin(blocks)
            self._pins[tier].update(blocks)
        on_device = [each.tier for each in lent].count(Tier.DEVICE) == len(lent)
        lease = Lease(id, secret, target, now + LEASE_TTL_S, lent, pinned, on_device)
        self._leases[id] = lease
        return lease

    def named(self, allowed: Allowed, first: int) -> list[bytes]:
        """BlockHashes of the longest run of granted keys from depth ``first`` on in any tier with a pool."""
        keys = allowed.keys[max(first - allowed.first, 0) * KEY_BYTES :]
        if first < allowed.first or not keys:
            raise Refused(Refusal.NOT_GRANTED, f"blocks from {first} on are not granted")
        runs = [cache.named(allowed.root, keys, first) for cache in self.caches.values()]
        return [node.hash for node in max(runs, key=len)]

    def of(self, id: int, secret: bytes, now: float) -> Lease | None:
        """The live lease that the secret opens."""
        lease = self._leases.get(id)
        if lease is None or not hmac.compare_digest(lease.secret, secret) or now >= lease.until:
            return None
        return lease

    def holds(self, lease: Lease, first: int, count: int, now: float) -> bool:
        """Whether blocks ``first`` and on are still what was lent."""
        if not lease.live or now >= lease.until:
            return False
        nodes = [each for each in lease.lent[first : first + count] if isinstance(each, Node)]
        if lease.on_device:
            return self.caches[Tier.DEVICE].holds(nodes)
        return all(self.caches[node.tier].holds([node]) for node in nodes)

    def release(self, id: int, secret: bytes) -> bool:
        """False when it has ended already."""
        lease = self._leases.get(id)
        if lease is None or not hmac.compare_digest(lease.secret, secret):
            return False
        self._end(lease)
        return True

    def expire(self, now: float) -> int:
        """Ends what is past its TTL; how many that were."""
        late = [lease for lease in self._leases.values() if now >= lease.until]
        for lease in late:
            self._end(lease)
        return len(late)

    def _end(self, lease: Lease) -> None:
        lease.live = False  # before anything can take its blocks
        del self._leases[lease.id]
        for tier, blocks in lease.pinned.items():
            pins = self._pins[tier]
            for block in blocks:
                if pins[block] == 1:
                    del pins[block]
                else:
                    pins[block] -= 1
            self.caches[tier].release(blocks, used=False)

    def _check_room(self, pinned: dict[Tier, list[int]]) -> None:
        """Raises Refused if leases pinned too much with these blocks. One that is lent already counts
        once."""
        full = [tier for tier, blocks in pinned.items() if not self._has_room(tier, blocks)]
        if full or len(self._leases) >= MAX_LEASES:
            pins = " and ".join(
                f"{len(pins)} blocks ({tier.name.lower()})" for tier, pins in self._pins.items()
            )
            raise Refused(Refusal.FULL, f"{len(self._leases)} leases pin {pins}: no more are lent")

    def _has_room(self, tier: Tier, blocks: list[int]) -> bool:
        pins, total = self._pins[tier], self.caches[tier].pool.total
        if _SHARE * (len(pins) + len(blocks)) <= total:
            return True  # even if all of them are new
        more = len(set(blocks).difference(pins))
        return not more or _SHARE * (len(pins) + more) <= total

    def _chain(self, tier: Tier, lent: Sequence[Lent]) -> list[int]:
        """The blocks of a tier to pin: all of the chain up to the last one that is lent from there."""
        last = next((each for each in reversed(lent) if each.tier is tier), None)
        return chain_to(last) if isinstance(last, Node) else []

    def _run(self, root: bytes, hashes: Sequence[bytes], records: Mapping[bytes, Record]) -> list[Lent]:
        """Raises Refused where a granted key names a block of another root."""
        lent: list[Lent] = [*self.caches[Tier.DEVICE].run(root, hashes)]  # most leases are of nothing else
        before = lent[-1].hash if lent else None
        for block_hash in hashes[len(lent) :]:
            each = self._in_memory(root, block_hash, before) or _on_disk(root, block_hash, records)
            if each is None:
                break
            lent.append(each)
            before = block_hash
        return lent

    def _in_memory(self, root: bytes, block_hash: bytes, before: bytes | None) -> Lent | None:
        for tier, cache in self.caches.items():
            node = cache.get(block_hash)
            if node is None or (before is not None and _parent(node) != before):
                continue
            if node.root != root:
                raise Refused(Refusal.OTHER_TENANT, "the grant is on another root than the block's")
            if tier == Tier.HOST and self._host and not self._host.sums[node.block]:
                continue  # found to be wrong
            return node
        return None


def _parent(node: Node) -> bytes:
    return node.parent.hash if node.parent else node.root


def _on_disk(root: bytes, block_hash: bytes, records: Mapping[bytes, Record]) -> Lent | None:
    record = records.get(block_hash)
    if record is None or record.root != root:
        return None
    return Stored(block_hash, record)
