"""The steps under way, and the blocks that may be released only after them.

A step that was handed to the device may read and write the blocks of its sequences until it has finished,
also those that a sequence gives up meanwhile: until then they stay pinned, so that nobody else, a later
step or a transfer, can be given them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from warmfleet_worker.engine.base import Plan
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import Sequence


@dataclass(slots=True)
class PlannedStep:
    """A step under way."""

    plan: Plan
    sequences: list[Sequence]  # whose the plan's works are
    planned: float  # when
    retired: list[list[int]] = field(default_factory=list)


class Steps:
    """Oldest first; they finish in that order."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._steps: deque[PlannedStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, plan: Plan, sequences: list[Sequence], now: float) -> None:
        self._steps.append(PlannedStep(plan, sequences, now))

    def finish(self) -> PlannedStep:
        """The oldest has finished."""
        step = self._steps.popleft()
        for blocks in step.retired:
            self._cache.release(blocks)
        return step

    def release(self, blocks: list[int]) -> None:
        """Like ``PrefixCache.release``, when all steps that are under way now have finished."""
        if self._steps:
            self._steps[-1].retired.append(blocks)
        else:
            self._cache.release(blocks)

    def filling(self, block_size: int) -> set[bytes]:
        """Hashes of the prompt blocks that become readable when they have finished."""
        return {
            block_hash
            for step in self._steps
            for sequence in step.sequences
            for block_hash in sequence.hashes[sequence.sealed : sequence.planned // block_size]
        }

    @property
    def retired(self) -> Iterator[int]:
        """Blocks that wait for them, one entry a pin."""
        return (block for step in self._steps for blocks in step.retired for block in blocks)
