"""The disk tier against a dictionary: whatever is put, spoilt, cut and reopened, it serves what was written
or nothing, and loses only what was spoilt, cut or made room for."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.hashing import keys
from warmfleet_worker.events import Appeared
from warmfleet_worker.tiers.disk import DiskStore, Stored

from tests.unit.tiers.blocks import chain_of, made, read

_CHAINS = {number: chain_of(number, 12, 256) for number in range(6)}
_BLOCKS = {block.identity.hash: block for chain in _CHAINS.values() for block in chain}


class DiskMachine(RuleBasedStateMachine):
    @initialize(record=st.integers(3, 100))
    def start(self, record: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.capacity = 400 * record
        self.known: dict[bytes, Stored] = {}  # what must be there but for what made room
        self.doubtful: set[bytes] = set()  # spoilt
        self.present: set[bytes] = set()
        self.open()

    def open(self) -> None:
        self.store = DiskStore(self.folder, made(256), self.capacity)
        self.store._segment_bytes = self.capacity // 4
        self.present = set()
        self.follow()

    def follow(self) -> None:
        for change in self.store.take_changes():
            if isinstance(change, Appeared):
                assert change.hash not in self.present
                self.present.add(change.hash)
            else:
                self.present.remove(change.hash)
        assert self.present == {entry.identity.hash for entry in self.store.catalogue}

    @rule(number=st.sampled_from(sorted(_CHAINS)), length=st.integers(1, 12))
    def put(self, number: int, length: int) -> None:
        blocks = _CHAINS[number][:length]
        self.store.put(blocks)
        self.known.update({b.identity.hash: b for b in blocks})
        for block in blocks:
            if self.store.catalogue.get(block.identity.hash) is None:
                del self.known[block.identity.hash]
        self.made_room()

    def made_room(self) -> None:
        """Whatever is gone has been told, and there was a reason: the folder is full."""
        self.follow()
        gone = self.known.keys() - self.present
        assert not gone or self.store.used_bytes > self.capacity // 4
        for block_hash in gone:
            del self.known[block_hash]

    @rule(number=st.sampled_from(sorted(_CHAINS)), start=st.integers(0, 11))
    def serve(self, number: int, start: int) -> None:
        hashes = [block.identity.hash for block in _CHAINS[number]]
        root = _CHAINS[number][0].identity.root
        run = self.store.catalogue.run(root, hashes, start)
        named = self.store.catalogue.named(root, keys(hashes[start:]), start)
        assert named == hashes[start : start + run]
        self.store.catalogue.use(hashes[: start + run])
        for block in _CHAINS[number][start : start + run]:
            self.check(block)
        self.follow()

    def check(self, block: Stored) -> None:
        own = block.identity.hash
        try:
            copy = read(self.store, block)
        except Corrupt:
            assert own in self.doubtful
            self.known.pop(own, None)
            return
        assert copy == (block.copy if own in self.present else None)

    @rule(torn=st.integers(0, 700))
    def die(self, torn: int) -> None:
        """The process ends at any byte of what it wrote last."""
        newest = max(self.folder.glob("*.wfkv"), default=None)
        self.store.close()
        if newest is not None:
            size = max(0, newest.stat().st_size - torn)
            with newest.open("r+b") as file:
                file.truncate(size)
            number = int(newest.stem)
            for entry in self.store.catalogue.of_segment(number):
                if entry.offset + 400 + 4 > size:
                    self.known.pop(entry.identity.hash, None)
        self.open()
        for block_hash in self.doubtful - self.present:  # a spoilt header is not even found
            self.known.pop(block_hash, None)
        assert self.known.keys() <= self.present

    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        entries = list(self.store.catalogue)
        if not entries:
            return
        entry = data.draw(st.sampled_from(entries))
        at = entry.offset + data.draw(st.integers(0, self.store._segments[entry.segment].record_bytes - 1))
        with self.store._segments[entry.segment].path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x10]))
        self.doubtful.add(entry.identity.hash)

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "store"):
            assert self.store.used_bytes <= self.capacity + self.store._segment_bytes

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for block in _BLOCKS.values():
                self.check(block)
            self.store.close()
            shutil.rmtree(self.folder)


TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
