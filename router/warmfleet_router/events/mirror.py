"""One engine's blocks under our names: its events in, instructions for the index out.

Engines name blocks by hashes of their own. Ours are made from the token ids that come with each
stored block, and the engine's name of its parent says where in a prompt it stands. A block whose
parent is not known cannot be named, and is left out: the index is then a part of the truth.

An engine may hold several copies of a block and tells of each: a block is present in a tier as
long as one is left. Names outlive presence, because a block may become the parent of one told
later; both are bounded.

An engine may lose blocks and not tell: its answers say so, by what they found of a prompt. Those blocks
are gone; where nothing at all was found, so is all that was told of before (``not_found``). Some requests
are computed anew whatever is cached, and say nothing of it: once a later answer finds what was taken to be
gone with the rest, all of it is there again (``found``).
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import block_hash
from warmfleet_proto.limits import KEY_BYTES, TOKEN_BYTES

from warmfleet_router.events import identity
from warmfleet_router.events.batch import Cleared, Event, Removed, Stored
from warmfleet_router.index.cursor import SLICE_BLOCKS, Clear, Instruction, Remove, Store

MAX_NAMES = 262_144  # that an engine's blocks have for us; a third of a kilobyte each
TIERS = (pb.DEVICE, pb.HOST, pb.DISK)
MAX_DEPTH = 1 << 22  # blocks before one in its prompt


class Block(Struct, frozen=True, gc=False):
    hash: bytes
    depth: int


class Copies(Struct, frozen=True, gc=False):
    """How many copies of one block are left in one tier. ``since`` and ``latest`` are the mirror's clock when
    the first and the latest was told of."""

    block: Block
    left: int
    since: int
    latest: int


class Mirror:
    """``fingerprint`` and ``block_size`` are those of the index; ``names`` bounds what is remembered."""

    def __init__(self, fingerprint: bytes, block_size: int, names: int = MAX_NAMES) -> None:
        self.clock = 0  # events that told of stored blocks
        self.other_size = 0  # tokens of a block as the events have it, where they tell of no other
        self._fingerprint = fingerprint
        self._block_size = block_size
        self._most = names
        self._names: OrderedDict[int, Block] = OrderedDict()  # in the order in which they were last told of
        self._copies: dict[tuple[bytes, int], Copies] = {}  # by the index's key and tier
        self._doubted: dict[tuple[bytes, int], Copies] = {}  # of those that an answer that found nothing took
        self._doubted_at = 0  # on the mirror's clock
        self._forgotten: list[bytes] = []  # to be taken out of the index too

    def __len__(self) -> int:
        return len(self._names)

    def apply(self, event: Event) -> Iterator[Instruction]:
        """Instructions of at most SLICE_BLOCKS blocks each; to be run to its end."""
        match event:
            case Stored():
                yield from self._stored(event)
            case Removed():
                yield from self._removed(event)
            case Cleared():
                yield from self.empty()

    def empty(self) -> Iterator[Instruction]:
        """Nothing is known to be present; names keep their meaning."""
        self._copies.clear()
        self._doubted.clear()
        yield Clear()

    def restart(self) -> Iterator[Instruction]:
        """Another incarnation, whose names may mean anything."""
        self._names.clear()
        yield from self.empty()

    # ---- stored

    def _stored(self, stored: Stored) -> Iterator[Instruction]:
        self.clock += 1
        blocks = self._told_again(stored) if not stored.token_ids else self._named(stored)
        yield from _runs(stored.tier, (block for block in blocks if self._add(block, stored.tier)))
        forgotten, self._forgotten = self._forgotten, []
        yield from self._disown(forgotten)

    def _add(self, block: Block, tier: int) -> bool:
        """Whether it is the first copy."""
        key = block.hash[:KEY_BYTES], tier
        copies = self._copies.get(key)
        if copies is None:
            self._doubted.pop(key, None)
            self._copies[key] = Copies(block, 1, self.clock, self.clock)
        else:
            self._copies[key] = replace(copies, left=copies.left + 1, latest=self.clock)
        return copies is None

    def _told_again(self, stored: Stored) -> list[Block]:
        """Offloaded blocks come without tokens."""
        return [block for name in stored.hashes if (block := self._names.get(name)) is not None]

    def _named(self, stored: Stored) -> Iterator[Block]:
        if len(stored.token_ids) != len(stored.hashes) * stored.block_size:
            return
        if stored.block_size != self._block_size:
            if len(stored.hashes) > 1 and not self._names:  # a single one may be a part of a block
                self.other_size = stored.block_size
            return
        parent = self._parent(stored)
        if parent is None:
            return
        packed = array("I", stored.token_ids).tobytes()
        size = self._block_size * TOKEN_BYTES
        above, depth = parent
        for at, name in enumerate(stored.hashes):
            if stored.extras:
                above = identity.mixed(above, stored.extras[at])
            above = block_hash(above, packed[at * size : at * size + size])
            block = Block(above, depth + at)
            if self._names.get(name, block) != block:
                return  # two meanings of one name: neither can be trusted
            self._remember(name, block)
            yield block

    def _parent(self, stored: Stored) -> tuple[bytes, int] | None:
        """The hash above the first block, and its depth."""
        if stored.parent is None:
            return identity.root(self._fingerprint, self._block_size, stored.adapter, stored.salt), 0
        block = self._names.get(stored.parent)
        if block is None or block.depth + len(stored.hashes) >= MAX_DEPTH:
            return None
        self._names.move_to_end(stored.parent)
        return block.hash, block.depth + 1

    def _remember(self, name: int, block: Block) -> None:
        self._names[name] = block
        self._names.move_to_end(name)
        if len(self._names) > self._most:
            _, oldest = self._names.popitem(last=False)
            self._forgotten.append(oldest.hash)  # its removal could not be told from a stranger's

    # ---- removed

    def _removed(self, removed: Removed) -> Iterator[Instruction]:
        gone: list[bytes] = []
        for at, name in enumerate(removed.hashes):
            block = self._names.get(name)
            copies = removed.copies[at] if removed.copies else None
            if block is not None and self._drop(block, removed.tier, copies):
                gone.append(block.hash)
        for start in range(0, len(gone), SLICE_BLOCKS):
            yield Remove(removed.tier, b"".join(gone[start : start + SLICE_BLOCKS]))

    def _drop(self, block: Block, tier: int, left: int | None) -> bool:
        """Whether it was the last copy."""
        key = block.hash[:KEY_BYTES], tier
        self._doubted.pop(key, None)
        copies = self._copies.get(key)
        if copies is None:
            return False
        left = copies.left - 1 if left is None else left
        if left > 0:
            self._copies[key] = replace(copies, left=left)
            return False
        del self._copies[key]
        return True

    # ---- what the engine's answers say

    def not_found(self, keys: Sequence[bytes], at: int, nothing: bool) -> Iterator[Instruction]:
        """A prompt that was placed at clock ``at`` did not find these blocks of its own; ``keys`` as the
        index has them. ``nothing``: it found none at all of what it should have found a lot of.

        What was told of since, by its own computing for one, is not in doubt. Nor is the rest where an
        event explains it: then the first of ``keys`` has been removed meanwhile.
        """
        doubted = [key for key in keys if self._is_older(key, at)]
        if not doubted:
            return
        if nothing and doubted[0] == keys[0]:
            yield from self._forget_all(at)
            return
        for tier in TIERS:
            yield from self._gone(tier, [key for key in doubted if self._outdated(key, tier, at)])

    def _is_older(self, key: bytes, at: int) -> bool:
        return any((copies := self._copies.get((key, tier))) and copies.since <= at for tier in TIERS)

    def _outdated(self, key: bytes, tier: int, at: int) -> bool:
        """Whether no copy is left that was told of after ``at``."""
        copies = self._copies.get((key, tier))
        if copies is None or copies.since > at:
            return False
        if copies.latest > at:
            self._copies[key, tier] = replace(copies, left=1, since=copies.latest)
            return False
        return True

    def _forget_all(self, at: int) -> Iterator[Instruction]:
        """The engine began anew, and did not say so."""
        kept = {key: copies for key, copies in self._copies.items() if copies.latest > at}
        self._doubted = {key: copies for key, copies in self._copies.items() if key not in kept}
        self._doubted_at = self.clock
        self._copies = {key: replace(c, left=1, since=c.latest) for key, c in kept.items()}
        yield Clear()
        yield from _stores(self._copies)

    @property
    def doubts(self) -> bool:
        """Whether ``found`` could change anything."""
        return bool(self._doubted)

    def found(self, keys: Sequence[bytes], at: int) -> Iterator[Instruction]:
        """A prompt that was placed at clock ``at`` found these blocks of its own.

        One that was placed before the doubt may have found them before they were lost.
        """
        wrongly = any((key, tier) in self._doubted for key in keys for tier in TIERS)
        if wrongly and at >= self._doubted_at:
            again, self._doubted = self._doubted, {}
            self._copies |= again
            yield from _stores(again)

    def _gone(self, tier: int, keys: Sequence[bytes]) -> Iterator[Instruction]:
        for key in keys:
            self._doubted.pop((key, tier), None)
        gone = [copies.block.hash for key in keys if (copies := self._copies.pop((key, tier), None))]
        for start in range(0, len(gone), SLICE_BLOCKS):
            yield Remove(tier, b"".join(gone[start : start + SLICE_BLOCKS]))

    def _disown(self, hashes: Sequence[bytes]) -> Iterator[Instruction]:
        """Their names are one too many."""
        for tier in TIERS if hashes else ():
            yield from self._gone(tier, [block[:KEY_BYTES] for block in hashes])


def _stores(copies: Mapping[tuple[bytes, int], Copies]) -> Iterator[Store]:
    """Of each tier its blocks."""
    for tier in TIERS:
        yield from _runs(tier, (each.block for (_, its), each in copies.items() if its == tier))


def _runs(tier: int, blocks: Iterable[Block]) -> Iterator[Store]:
    """One instruction for blocks that follow each other in a prompt, up to SLICE_BLOCKS of them."""
    run: list[bytes] = []
    depth = 0
    for block in blocks:
        if run and (block.depth != depth + len(run) or len(run) == SLICE_BLOCKS):
            yield Store(tier, depth, b"".join(run))
            run = []
        if not run:
            depth = block.depth
        run.append(block.hash)
    if run:
        yield Store(tier, depth, b"".join(run))
