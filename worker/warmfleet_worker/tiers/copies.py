"""Copies of blocks in the host's memory: how they come there and back, and what proves them.

On a CPU a copy is proven by xxh3-128 of its bytes. Beside a GPU it is proven by the sum that the kernels
make of the words that leave and enter the pool: that covers the link, and no core of the host reads a block.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.tiers.format import copy_sum


class Copies(Protocol):
    """``memory`` is slots one after another. From any thread, each slot by one at a time;
    ``up`` by one thread."""

    @property
    def part_bytes(self) -> int:
        """How much to bring up between two looks at whether anybody still waits."""

    def sum(self, copy: memoryview) -> bytes:
        """What proves it."""

    def down(self, blocks: Sequence[int], slots: Sequence[int]) -> list[bytes]:
        """Blocks of the pool into slots; their sums."""

    def up(self, slots: Sequence[int], blocks: Sequence[int], sums: Sequence[bytes]) -> int:
        """The way back: how many leading copies agree with their sums. What others have written into the
        pool is to be dropped."""


def copies_of(engine: Engine, memory: memoryview) -> Copies:
    """How the engine's blocks are copied to ``memory`` and back."""
    if engine.cuda_pool is None:
        return HostCopies(engine, memory)
    from warmfleet_worker.tiers.device_copies import DeviceCopies

    return DeviceCopies(engine.cuda_pool, memory)


class HostCopies:
    """See ``Copies``."""

    part_bytes = 8 << 20
    sum = staticmethod(copy_sum)

    def __init__(self, engine: Engine, memory: memoryview) -> None:
        self._engine = engine
        self._memory = memory
        self._size = engine.block_bytes
        self._private = engine.host_memory(max(1, self.part_bytes // self._size) * self._size)

    def down(self, blocks: Sequence[int], slots: Sequence[int]) -> list[bytes]:
        for first, end, at in runs(slots):
            self._engine.read_blocks(blocks[first:end], self._slots(at, end - first))
        return [copy_sum(self._slots(slot)) for slot in slots]

    def up(self, slots: Sequence[int], blocks: Sequence[int], sums: Sequence[bytes]) -> int:
        """At most ``part_bytes``. A copy of the copy is proven and goes on: a slot that changes after its
        proof, by whatever fault, would be served."""
        for good, slot in enumerate(slots):
            copy = self._private[good * self._size : (good + 1) * self._size]
            np.copyto(np.frombuffer(copy, np.uint8), np.frombuffer(self._slots(slot), np.uint8))
            if copy_sum(copy) != sums[good]:
                break
        else:
            good = len(slots)
        if good:
            self._engine.write_blocks(blocks[:good], self._private[: good * self._size])
        return good

    def _slots(self, first: int, count: int = 1) -> memoryview:
        return self._memory[first * self._size : (first + count) * self._size]


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Index ranges over which the slots rise one by one, and the first slot: each is one piece of memory."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1:
            yield start, i, slots[start]
            start = i
