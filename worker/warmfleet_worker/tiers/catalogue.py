"""Which stored blocks there are, in which segment, and which of them are worth moving when one is given up.

Pure, and read by two threads: the one that owns it changes it, the other only asks single questions.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from warmfleet_proto.limits import KEY_BYTES

from warmfleet_worker.tiers.format import Place


class Entry:
    __slots__ = ("identity", "offset", "segment", "used")

    def __init__(self, place: Place, segment: int) -> None:
        self.identity = place.identity
        self.offset = place.offset
        self.segment = segment  # its number
        self.used = False  # since it was written


class Catalogue:
    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._named: dict[bytes, Entry] = {}  # by key; of two with one key the later
        self._segments: dict[int, dict[bytes, Entry]] = {}
        self._children: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, block_hash: bytes) -> Entry | None:
        return self._entries.get(block_hash)

    def ends(self) -> list[Entry]:
        """The blocks that no other block continues."""
        return [entry for entry in self if entry.identity.hash not in self._children]

    def run(self, root: bytes, hashes: Sequence[bytes], start: int) -> int:
        """How many consecutive blocks of a chain there are from position ``start`` on."""
        parent = hashes[start - 1] if start else root
        found = 0
        for block_hash in hashes[start:]:
            entry = self._entries.get(block_hash)
            if entry is None or entry.identity[1:] != (parent, root, start + found):
                break
            parent = block_hash
            found += 1
        return found

    def named(self, root: bytes, keys: bytes, depth: int) -> list[bytes]:
        """BlockHashes of the longest run, from position ``depth`` of a chain on, of blocks that go by these
        packed 8-byte keys."""
        found: list[bytes] = []
        for start in range(0, len(keys), KEY_BYTES):
            entry = self._named.get(keys[start : start + KEY_BYTES])
            if entry is None or entry.identity[2:] != (root, depth + len(found)):
                break
            if found and entry.identity.parent != found[-1]:
                break
            found.append(entry.identity.hash)
        return found

    def use(self, hashes: Iterable[bytes]) -> None:
        """A chain, or its front: what comes before a block that is used is used too."""
        for block_hash in hashes:
            if entry := self._entries.get(block_hash):
                entry.used = True

    def add(self, place: Place, segment: int) -> bool:
        """The newest record of a block counts; true when there was none."""
        block_hash = place.identity.hash
        before = self._entries.get(block_hash)
        if before is not None:
            del self._segments[before.segment][block_hash]
        else:
            self._children[place.identity.parent] += 1
        entry = Entry(place, segment)
        self._entries[block_hash] = self._named[block_hash[:KEY_BYTES]] = entry
        self._segments.setdefault(segment, {})[block_hash] = entry
        return before is None

    def load(self, places: Sequence[Place], segment: int) -> bool:
        """Adds all blocks of a segment that was opened, at a fraction of the time; false, and nothing done,
        where one is there already."""
        entries = {place.identity.hash: Entry(place, segment) for place in places}
        if len(entries) < len(places) or not entries.keys().isdisjoint(self._entries):
            return False
        self._entries.update(entries)
        self._named.update([(block_hash[:KEY_BYTES], entry) for block_hash, entry in entries.items()])
        self._segments[segment] = entries
        self._children.update([place.identity.parent for place in places])
        return True

    def remove(self, entry: Entry) -> bool:
        """False when it has been removed or replaced already."""
        identity = entry.identity
        if self._entries.get(identity.hash) is not entry:
            return False
        del self._entries[identity.hash]
        if self._named.get(identity.hash[:KEY_BYTES]) is entry:
            del self._named[identity.hash[:KEY_BYTES]]
        del self._segments[entry.segment][identity.hash]
        self._children[identity.parent] -= 1
        if not self._children[identity.parent]:
            del self._children[identity.parent]
        return True

    def of_segment(self, segment: int) -> list[Entry]:
        return list(self._segments.get(segment, {}).values())

    def survivors(self, segment: int, most: int) -> list[Entry]:
        """Which entries of a segment to move, at most so many: those used, and those before them in their
        chains, fronts first. What no chain goes on from falls, and then what it alone went on from."""
        fallen: Counter[bytes] = Counter()
        kept = []
        for entry in sorted(self.of_segment(segment), key=lambda e: -e.identity.depth):
            block_hash, parent, _, _ = entry.identity
            if entry.used or self._children[block_hash] > fallen[block_hash]:
                kept.append(entry)
            else:
                fallen[parent] += 1
        return kept[::-1][:most]
