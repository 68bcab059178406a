"""The index against a plain model: both implementations, driven together, step by step."""

import os
import random
from array import array
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from warmfleet_router.index.seats import MAX_WORKERS

from tests.index_model import DEVICE, HOST, IMPLEMENTATIONS, Model, keys, lookup, split

BOUNDLESS = 100_000
EXAMPLES = int(os.environ.get("INDEX_EXAMPLES", "30"))


class IndexMachine(RuleBasedStateMachine):
    """Below the cap an index equals the model; above it, it is a subset and says so."""

    @initialize(cap=st.sampled_from([1, 5, 40, 2000, 2000, BOUNDLESS]))
    def make(self, cap: int) -> None:
        self.cap = cap
        self.indexes = [implementation(cap) for implementation in IMPLEMENTATIONS]
        self.model = Model()

    def each(self, method: str, *args: Any) -> Any:
        answers = [getattr(i, method)(*args) for i in self.indexes]
        assert all(a == answers[0] for a in answers)
        return answers[0]

    def worker(self, choice: int) -> int:
        return sorted(self.model.held)[choice % len(self.model.held)]

    @rule(count=st.sampled_from([1, 1, 1, 3, 3, 70]))
    def add_worker(self, count: int) -> None:
        for _ in range(count if len(self.model.held) < 75 else 0):
            worker = self.each("add_worker")
            assert worker not in self.model.held
            self.model.held[worker] = {}

    runs = st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from([1, 3, 17, 200]))
    some = precondition(lambda self: self.model.held)

    @some
    @rule(choice=st.integers(0), tier=st.sampled_from([1, 1, 1, 2, 3]), run=runs)
    def store(self, choice: int, tier: int, run: tuple[int, int, int]) -> None:
        worker, (chain, start, count) = self.worker(choice), run
        self.each("store", worker, tier, start, keys(chain, start, start + count))
        self.model.store(worker, tier, keys(chain, start, start + count))

    @some
    @rule(tier=st.sampled_from([1, 1, 2]), run=runs)
    def store_everywhere(self, tier: int, run: tuple[int, int, int]) -> None:
        for worker in self.model.held:
            self.store(sorted(self.model.held).index(worker), tier, run)

    @some
    @rule(choice=st.integers(0), tier=st.sampled_from([1, 1, 2, 3]), run=runs, backwards=st.booleans())
    def remove(self, choice: int, tier: int, run: tuple[int, int, int], backwards: bool) -> None:
        worker, (chain, start, count) = self.worker(choice), run
        packed = split(keys(chain, start, start + count))
        joined = b"".join(reversed(packed) if backwards else packed)
        self.each("remove", worker, tier, joined)
        self.model.remove(worker, tier, joined)

    @some
    @rule(choice=st.integers(0), run=runs)
    def twice_in_one_batch(self, choice: int, run: tuple[int, int, int]) -> None:
        worker, (chain, start, count) = self.worker(choice), run
        packed = keys(chain, start, start + count) * 2
        self.each("store", worker, DEVICE, start, packed)
        self.model.store(worker, DEVICE, packed)
        self.each("remove", worker, HOST, packed)
        self.model.remove(worker, HOST, packed)

    @some
    @rule(choice=st.integers(0))
    def clear(self, choice: int) -> None:
        self.each("clear", self.worker(choice))
        self.model.held[self.worker(choice)] = {}

    @some
    @rule(choice=st.integers(0), run=runs)
    def replace_by_snapshot(self, choice: int, run: tuple[int, int, int]) -> None:
        self.clear(choice)
        self.store(choice, HOST, run)
        self.store(choice, DEVICE, (run[0], 0, run[2]))

    @some
    @rule(choice=st.integers(0))
    def remove_worker(self, choice: int) -> None:
        worker = self.worker(choice)
        self.each("remove_worker", worker)
        del self.model.held[worker]

    @rule(budget=st.sampled_from([1, 7, 100, 1_000_000]))
    def sweep(self, budget: int) -> None:
        if self.each("sweep", budget):
            held = set().union(*self.model.held.values()) if self.model.held else set()
            gapless = not self.indexes[0].gaps
            assert len(self.indexes[0]) == len(held) if gapless else len(self.indexes[0]) <= len(held)

    @rule(
        chain=st.integers(0, 3),
        count=st.sampled_from([0, 1, 9, 64, 65, 250]),
        seed=st.integers(0, 9),
        top=st.sampled_from([1, 3, 16]),
        leap=st.booleans(),
    )
    def lookup(self, chain: int, count: int, seed: int, top: int, leap: bool) -> None:
        loads = random.Random(seed)
        booked = [float(loads.randrange(4)) for _ in range(MAX_WORKERS)]
        packed = keys(chain, 0, count)
        answer, *others = [lookup(index, packed, array("d", booked), top, leap) for index in self.indexes]
        assert all(other == answer for other in others)
        if not self.indexes[0].gaps:
            assert answer == self.model.lookup(packed, booked, top)
        for claim in answer:
            assert claim.lower <= claim.blocks <= self.model.overlap(claim.worker, packed).blocks

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "indexes"):
            return
        assert self.each("__len__") <= self.cap
        gaps = {i.gaps for i in self.indexes}
        assert len(gaps) == 1
        for worker, blocks in self.model.held.items():
            held = self.each("held", worker)
            assert held == len(blocks) if gaps == {0} else held <= len(blocks)


IndexMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
TestIndexMachine = IndexMachine.TestCase
