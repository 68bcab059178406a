"""Write-back against a device whose blocks are taken for something else at any moment: what the host tier
says that it holds is what was computed for it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from warmfleet_proto.hashing import block_hash
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.events import Appeared, Change
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.tiers.host import HostTier
from warmfleet_worker.tiers.writeback import Saves, WriteBack

ROOT = b"r" * 16


class WriteBackMachine(RuleBasedStateMachine):
    @initialize(blocks=st.integers(3, 12), slots=st.integers(2, 12))
    def start(self, blocks: int, slots: int) -> None:
        self.device = PrefixCache(BlockPool(blocks), 1)
        self.host = HostTier(slots, 1)
        self.back = WriteBack(self.device, self.host)
        self.content: list[bytes] = [b""] * blocks  # what the device's blocks hold
        self.memory: list[bytes] = [b""] * slots
        self.job: Saves | None = None
        self.copied = 0
        self.present: set[bytes] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def compute(self, tokens: list[int]) -> None:
        """A prompt of one token a block, as far as there is room."""
        held: list[int] = []
        node: Node | None = None
        for token in tokens:
            token_ids = token.to_bytes(4, "little")
            own = block_hash(node.hash if node else ROOT, token_ids)
            found = self.device.get(own)
            if found is not None:
                self.device.pin([found.block])
                held.append(found.block)
                node = found
                continue
            taken = self.device.allocate(1)
            if taken is None:
                break
            held += taken
            self.content[taken[0]] = own
            node = self.device.seal(taken[0], own, ROOT, node, token_ids)
        self.device.release(held)

    @rule(count=st.integers(1, 4))
    def overwrite(self, count: int) -> None:
        """Somebody takes blocks and fills them with something that never becomes readable."""
        taken = self.device.allocate(min(count, self.device.available)) or []
        for block in taken:
            self.content[block] = b"something else"
        self.device.release(taken)

    @precondition(lambda self: hasattr(self, "host") and self.job is None and self.host.cache._nodes)
    @rule(data=st.data())
    def condemn(self, data: st.DataObject) -> None:
        """A copy in the host's memory is found to be wrong."""
        slot = data.draw(st.sampled_from(sorted(node.block for node in self.host.cache._nodes.values())))
        self.memory[slot] = b"wrong"
        self.host.condemn(slot)

    @rule()
    def note(self) -> None:
        self.back.note(self.device.take_changes())

    @precondition(lambda self: hasattr(self, "host") and self.job is None)
    @rule(most=st.integers(1, 5))
    def begin(self, most: int) -> None:
        self.job, self.copied = self.back.next(most), 0
        for spill in self.back.take_present():
            assert self.memory[spill.slot] == spill.identity.hash

    @precondition(lambda self: hasattr(self, "host") and self.job is not None)
    @rule()
    def copy_one(self) -> None:
        assert self.job is not None
        if self.copied < len(self.job.saves):
            save = self.job.saves[self.copied]
            self.memory[save.slot] = self.content[save.node.block]
            self.copied += 1

    @precondition(lambda self: hasattr(self, "host") and self.job is not None)
    @rule(failed=st.booleans())
    def end(self, failed: bool) -> None:
        assert self.job is not None
        while self.copied < len(self.job.saves):
            self.copy_one()
        sums = None if failed else [b"sum"] * len(self.job.saves)
        for spill in self.back.done(self.job, sums):
            assert self.memory[spill.slot] == spill.identity.hash
            assert block_hash(spill.identity.parent, spill.token_ids) == spill.identity.hash
        self.job = None

    @invariant()
    def what_is_held_is_right(self) -> None:
        if not hasattr(self, "host"):
            return
        self.device.check_integrity()
        self.host.cache.check_integrity()
        assert self.device.pool.pinned == 0
        if self.job is None:
            assert self.host.cache.pool.pinned == 0
        for node in self.host.cache._nodes.values():
            assert self.memory[node.block] == node.hash or not self.host.sums[node.block]
        self.follow(self.host.cache.take_changes())

    def follow(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Appeared):
                assert change.hash not in self.present
                self.present.add(change.hash)
            else:
                self.present.remove(change.hash)  # type: ignore[union-attr]
        assert self.present == set(self.host.cache._nodes)


TestWriteBack = WriteBackMachine.TestCase
TestWriteBack.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_everything_computed_reaches_a_large_host_tier() -> None:
    machine = WriteBackMachine()
    machine.start(12, 12)
    machine.compute([0, 1, 0, 1, 1])
    machine.compute([0, 1, 1])
    machine.note()
    machine.begin(3)
    machine.end(False)
    machine.begin(5)
    machine.end(False)
    assert machine.back.saved == len(machine.host.cache._nodes) == 6
    machine.overwrite(12)
    machine.compute([0, 1, 0])
    machine.note()
    assert machine.back.next(9) is None
    assert len(machine.back.take_present()) == 3
    machine.what_is_held_is_right()


def test_a_copy_that_was_wrong_is_made_anew_when_its_block_is_computed_again() -> None:
    """What goes on from it is held still, and could never be reached."""
    machine = WriteBackMachine()
    machine.start(12, 12)
    machine.compute([0, 1, 0, 1])
    machine.note()
    machine.begin(9)
    machine.end(False)
    (first,) = [node for node in machine.host.cache._nodes.values() if node.depth == 0]
    machine.memory[first.block] = b"wrong"
    machine.host.condemn(first.block)
    machine.overwrite(12)
    machine.compute([0, 1])
    machine.note()
    machine.begin(9)
    assert machine.job is not None
    assert [save.slot for save in machine.job.saves] == [first.block]
    machine.end(False)
    assert all(machine.host.sums[node.block] for node in machine.host.cache._nodes.values())
    machine.what_is_held_is_right()


def test_where_there_is_no_room_below_a_chain_it_is_let_go() -> None:
    machine = WriteBackMachine()
    machine.start(3, 2)
    machine.compute([0, 0, 0])
    machine.note()
    machine.begin(2)
    machine.end(False)
    machine.begin(1)
    machine.what_is_held_is_right()
