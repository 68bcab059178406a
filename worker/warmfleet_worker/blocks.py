"""The numbers, pins and generations of a pool's blocks. It knows nothing of what a block holds.

A block is *free* (no content), *pinned* (somebody uses it) or *cached* (readable content that nobody
uses right now): free + pinned + cached is the total, always.
"""

from collections.abc import Iterable


class BlockPool:
    def __init__(self, total: int) -> None:
        self.total = total
        self.cached = 0
        self._free = list(range(total - 1, -1, -1))
        self._pins = [0] * total
        self._kept = bytearray(total)
        self._generations = [0] * total

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def pinned(self) -> int:
        return self.total - self.cached - len(self._free)

    def generation(self, block: int) -> int:
        """Names the block's content together with its number: rises whenever the block is taken anew."""
        return self._generations[block]

    def is_pinned(self, block: int) -> bool:
        return self._pins[block] > 0

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these nobody uses."""
        pins = self._pins
        return [pins[block] for block in blocks].count(0)

    def take(self, count: int) -> list[int]:
        """Free blocks, each pinned once. The caller has made sure that there are so many."""
        at = len(self._free) - count
        assert at >= 0, "not so many are free"
        taken = self._free[at:][::-1]
        del self._free[at:]
        pins, generations = self._pins, self._generations
        for block in taken:
            pins[block] = 1
            generations[block] += 1
        return taken

    def pin(self, blocks: Iterable[int]) -> None:
        """One more user of each of these pinned or cached blocks."""
        pins, kept, cached = self._pins, self._kept, 0
        for block in blocks:
            users = pins[block]
            if not users:
                assert kept[block], f"block {block} is free"
                cached += 1
            pins[block] = users + 1
        self.cached -= cached

    def unpin(self, blocks: Iterable[int]) -> list[int]:
        """One user less of each; those of which it was the last. They are then cached if kept, else free."""
        pins, kept, loose = self._pins, self._kept, []
        for block in blocks:
            users = pins[block]
            assert users, f"block {block} is not pinned"
            pins[block] = users - 1
            if users == 1:
                loose.append(block)
        free = [block for block in loose if not kept[block]]
        self._free += free
        self.cached += len(loose) - len(free)
        return loose

    def keep(self, blocks: Iterable[int]) -> None:
        """The pinned blocks' content is readable: at rest they stay cached."""
        pins, kept = self._pins, self._kept
        for block in blocks:
            assert pins[block], f"block {block} is not pinned"
            assert not kept[block], f"block {block} is kept already"
            kept[block] = 1

    def drop(self, block: int) -> None:
        """Frees a cached block."""
        assert self._kept[block], f"block {block} is not cached"
        assert not self._pins[block], f"block {block} is pinned"
        self._kept[block] = 0
        self.cached -= 1
        self._free.append(block)

    def check_integrity(self) -> None:
        """Counts everything anew. Raises AssertionError."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        cached = 0
        for block, (pins, kept) in enumerate(zip(self._pins, self._kept, strict=True)):
            assert pins >= 0
            cached += bool(kept and not pins)
            assert (block in free) == (not pins and not kept), f"block {block}: {pins} pins, kept {kept}"
        assert cached == self.cached
