"""Leases: blocks that are pinned for a peer, each for at most LEASE_TTL_S.

Pure, and owned by the event loop; ``of`` and ``holds`` are also asked by the transports' threads, which
send a copy only if the lease still holds after the copy was made.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from warmfleet_proto.limits import KEY_BYTES, LEASE_TTL_S

from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.transfer.grant import Allowed
from warmfleet_worker.transfer.refusal import Refusal, Refused

MAX_LEASES = 256
_SHARE = 2  # of the pool is the most that leases may pin


class Lent(NamedTuple):
    """One block: its number and generation together name its content."""

    block: int
    generation: int
    hash: bytes
    token_ids: bytes


@dataclass(slots=True, eq=False)
class Lease:
    id: int
    secret: bytes
    target: str
    until: float  # never pinned longer
    lent: tuple[Lent, ...]
    pinned: tuple[int, ...]  # the lent blocks and those before them in their chain
    live: bool = True


class Leases:
    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._leases: dict[int, Lease] = {}
        self._pins = 0

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def held(self) -> list[int]:
        """Every pin, one entry each."""
        return [block for lease in self._leases.values() for block in lease.pinned]

    @property
    def next_expiry(self) -> float | None:
        return min((lease.until for lease in self._leases.values()), default=None)

    def open(
        self, id: int, secret: bytes, target: str, allowed: Allowed, hashes: Sequence[bytes], now: float
    ) -> Lease | None:
        """Pins the longest readable run of ``hashes``, which are granted; None when there is none.

        Raises Refused. ``id`` and ``secret`` are new and random.
        """
        assert id not in self._leases
        nodes = self._readable(allowed.root, hashes)
        if not nodes:
            return None
        pinned = (*_before(nodes[0]), *(node.block for node in nodes))
        if len(self._leases) >= MAX_LEASES or _SHARE * (self._pins + len(pinned)) > self._cache.pool.total:
            raise Refused(
                Refusal.FULL, f"{len(self._leases)} leases pin {self._pins} blocks: no more are lent"
            )
        generation = self._cache.pool.generation
        lent = tuple([Lent(n.block, generation(n.block), n.hash, n.token_ids) for n in nodes])
        self._cache.pin(pinned)
        self._pins += len(pinned)
        lease = self._leases[id] = Lease(id, secret, target, now + LEASE_TTL_S, lent, pinned)
        return lease

    def named(self, allowed: Allowed, first: int) -> list[bytes]:
        """BlockHashes of the readable run of granted keys from depth ``first`` on."""
        keys = allowed.keys[max(first - allowed.first, 0) * KEY_BYTES :]
        if first < allowed.first or not keys:
            raise Refused(Refusal.NOT_GRANTED, f"blocks from {first} on are not granted")
        return [node.hash for node in self._cache.named(allowed.root, keys, first)]

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
        generation = self._cache.pool.generation
        return all(generation(each.block) == each.generation for each in lease.lent[first : first + count])

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
        self._pins -= len(lease.pinned)
        self._cache.release(lease.pinned)

    def _readable(self, root: bytes, hashes: Sequence[bytes]) -> list[Node]:
        """Raises Refused where a granted key names a block of another root."""
        nodes: list[Node] = []
        for block_hash in hashes:
            node = self._cache.find(block_hash)
            if node is None or (nodes and node.parent is not nodes[-1]):
                break
            if node.root != root:
                raise Refused(Refusal.OTHER_TENANT, "the grant is on another root than the block's")
            nodes.append(node)
        return nodes


def _before(node: Node) -> list[int]:
    """The chain before a block, from its root on: who pins a block pins all of it."""
    blocks = []
    while node.parent is not None:
        node = node.parent
        blocks.append(node.block)
    return blocks[::-1]
