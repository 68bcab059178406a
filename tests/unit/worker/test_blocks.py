"""The pool against a plain account of every block."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from warmfleet_worker.blocks import BlockPool

TOTAL = 5
blocks = st.integers(0, TOTAL - 1)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.pins = dict.fromkeys(range(TOTAL), 0)
        self.kept: set[int] = set()
        self.taken = dict.fromkeys(range(TOTAL), 0)

    def free(self) -> int:
        return sum(not self.pins[b] and b not in self.kept for b in range(TOTAL))

    @rule(count=st.integers(0, 3))
    def take(self, count: int) -> None:
        if count > self.free():
            with pytest.raises(AssertionError):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        for block in taken:
            assert not self.pins[block]
            assert block not in self.kept
            self.pins[block] = 1
            self.taken[block] += 1

    @rule(block=blocks)
    def pin(self, block: int) -> None:
        if self.pins[block] or block in self.kept:
            self.pool.pin([block])
            self.pins[block] += 1
        else:
            with pytest.raises(AssertionError):
                self.pool.pin([block])

    @rule(block=blocks)
    def unpin(self, block: int) -> None:
        if not self.pins[block]:
            with pytest.raises(AssertionError):
                self.pool.unpin([block])
            return
        self.pins[block] -= 1
        assert self.pool.unpin([block]) == ([] if self.pins[block] else [block])

    @rule(block=blocks)
    def keep(self, block: int) -> None:
        if self.pins[block] and block not in self.kept:
            self.pool.keep([block])
            self.kept.add(block)
        else:
            with pytest.raises(AssertionError):
                self.pool.keep([block])

    @rule(block=blocks)
    def drop(self, block: int) -> None:
        if not self.pins[block] and block in self.kept:
            self.pool.drop(block)
            self.kept.remove(block)
        else:
            with pytest.raises(AssertionError):
                self.pool.drop(block)

    @invariant()
    def accounts_agree(self) -> None:
        self.pool.check_integrity()
        assert self.pool.free == self.free()
        assert self.pool.cached == sum(not self.pins[b] for b in self.kept)
        assert self.pool.idle(range(TOTAL)) == sum(not pins for pins in self.pins.values())
        assert self.pool.pinned == sum(1 for pins in self.pins.values() if pins)
        assert self.pool.free + self.pool.cached + self.pool.pinned == TOTAL
        for block, taken in self.taken.items():
            assert self.pool.generation(block) == taken
            assert self.pool.is_pinned(block) == bool(self.pins[block])


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=50, deadline=None)
