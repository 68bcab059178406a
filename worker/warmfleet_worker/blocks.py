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

    def take(self) -> int:
        """A free block, pinned once. The caller has made sure that there is one."""
        block = self._free.pop()
        self._pins[block] = 1
        self._generations[block] += 1
        return block

    def pin(self, blocks: Iterable[int]) -> None:
        """One more user of each of these pinned or cached blocks."""
        pins, kept = self._pins, self._kept
        for block in blocks:
            if not pins[block]:
                assert kept[block], f"block {block} is free"
                self.cached -= 1
            pins[block] += 1

    def unpin(self, blocks: Iterable[int]) -> list[int]:
        """One user less of each; those of which it was the last. They are then cached if kept, else free."""
        pins, kept, loose = self._pins, self._kept, []
        for block in blocks:
            assert pins[block], f"block {block} is not pinned"
            pins[block] -= 1
            if not pins[block]:
                loose.append(block)
                if kept[block]:
                    self.cached += 1
                else:
                    self._free.append(block)
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
