"""What is copied from the device to the host tier: every block soon after it became readable.

Not at its eviction: then somebody would have to wait for the copy, and what a killed worker has on disk would
be what it needed least. Nothing is pinned on the device for it: a block that was taken for something else
while it was copied shows in its generation, and is not committed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from warmfleet_worker.events import Appeared, Change, Tier
from warmfleet_worker.prefix import Node, PrefixCache, chain_to
from warmfleet_worker.tiers.format import Identity
from warmfleet_worker.tiers.host import HostTier

MAX_QUEUED = 8192  # blocks


class Save(NamedTuple):
    node: Node  # of the device
    generation: int
    slot: int  # of the host, taken for it, or its own


class Saves(NamedTuple):
    """One job: its copies, parents before children, and every pin on the host tier that goes with it."""

    saves: tuple[Save, ...]
    held: tuple[int, ...]


class Spill(NamedTuple):
    """A block in the host tier that should be on disk. Its sum proves what is read of it later."""

    identity: Identity
    token_ids: bytes
    slot: int
    sum: bytes


class WriteBack:
    def __init__(self, device: PrefixCache, host: HostTier) -> None:
        self.saved = 0  # blocks
        self.outrun = 0  # taken for something else before they were copied
        self.dropped = 0  # for want of room in the queue or in the host tier
        self._device = device
        self._host = host
        self._queue: deque[Node] = deque()
        self._present: list[Node] = []  # of the host: met again

    @property
    def queued(self) -> int:
        return len(self._queue)

    def note(self, changes: Iterable[Change]) -> None:
        """What became readable on the device."""
        for change in changes:
            if not isinstance(change, Appeared) or change.tier != Tier.DEVICE:
                continue
            node = self._device.get(change.hash)
            if node is None:
                self.outrun += 1
            elif len(self._queue) >= MAX_QUEUED:
                self.dropped += 1
            else:
                self._queue.append(node)

    def next(self, most: int) -> Saves | None:
        """The next job, of at most so many blocks; None when there is nothing to copy."""
        saves: list[Save] = []
        held: list[int] = []
        planned: set[bytes] = set()
        while self._queue and len(saves) < most:
            node = self._queue.popleft()
            if self._device.get(node.hash) is not node:
                self.outrun += 1
                continue
            if self._mend(node, planned, saves, held):
                continue
            path = self._missing(node, planned)
            part = path[: most - len(saves)]  # the front of its chain first
            if part and self._plan(part, saves, held):
                planned.update(each.hash for each in part)
                if len(part) < len(path):
                    self._queue.appendleft(node)
        if not saves:
            self._host.cache.release(held)
            return None
        return Saves(tuple(saves), tuple(held))

    def done(self, job: Saves, sums: Sequence[bytes] | None) -> list[Spill]:
        """The copies were made, or not (None); what should go on to the disk."""
        spills = []
        for save, total in zip(job.saves, sums or (), strict=sums is not None):
            if self._commit(save, total):
                spills.append(_spill(save.node, save.slot, total))
        self._host.cache.release(list(job.held))
        return spills

    def take_present(self) -> list[Spill]:
        """What the host tier held already when it was computed or fetched again."""
        present, self._present = self._present, []
        sums = self._host.sums
        return [_spill(node, node.block, sums[node.block]) for node in present if sums[node.block]]

    def _mend(self, node: Node, planned: set[bytes], saves: list[Save], held: list[int]) -> bool:
        """Plans the same slot for a block whose copy there was found to be wrong: all that goes on from it
        could not be reached else."""
        kept = self._host.cache.get(node.hash)
        if kept is None or self._host.sums[kept.block] or node.hash in planned:
            return False
        chain = chain_to(kept)
        self._host.cache.pin(chain)
        held += chain
        saves.append(Save(node, self._device.pool.generation(node.block), kept.block))
        planned.add(node.hash)
        return True

    def _missing(self, node: Node, planned: set[bytes]) -> list[Node]:
        """What the host lacks of the chain that ends with ``node``, from its front on."""
        path: list[Node] = []
        at: Node | None = node
        while at is not None and at.hash not in planned and self._host.cache.get(at.hash) is None:
            path.append(at)
            at = at.parent
        if not path and (present := self._host.cache.get(node.hash)):
            self._present.append(present)
        return path[::-1]

    def _plan(self, path: list[Node], saves: list[Save], held: list[int]) -> bool:
        """Takes slots for a path, below what the host has of its chain; false where there are too few."""
        cache = self._host.cache
        before = cache.get(path[0].parent.hash) if path[0].parent else None
        chain = chain_to(before) if before else []
        cache.pin(chain)
        held += chain
        slots = cache.allocate(len(path))
        if slots is None:
            self.dropped += len(path)
            return False
        held += slots
        generation = self._device.pool.generation
        saves += [Save(n, generation(n.block), slot) for n, slot in zip(path, slots, strict=True)]
        return True

    def _commit(self, save: Save, total: bytes) -> bool:
        node, cache = save.node, self._host.cache
        if self._device.pool.generation(node.block) != save.generation:
            self.outrun += 1
            return False
        parent = cache.get(node.parent.hash) if node.parent else None
        if node.parent is not None and parent is None:
            return False  # was outrun itself
        kept = cache.seal(save.slot, node.hash, node.root, parent, node.token_ids)
        if kept is None or kept.block != save.slot:
            return False
        self._host.sums[save.slot] = total
        self.saved += 1
        return True


def _spill(node: Node, slot: int, total: bytes) -> Spill:
    parent = node.parent.hash if node.parent else node.root
    return Spill(Identity(node.hash, parent, node.root, node.depth), node.token_ids, slot, total)
