"""A thousand wrong copies a path: every one is seen, none reaches the pool."""

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Queue

import pytest
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_worker.engine.sim import SimEngine
from warmfleet_worker.fetch import Arrival, Fetch, Piece, Stock
from warmfleet_worker.sequence import Request
from warmfleet_worker.source import Source
from warmfleet_worker.tiers.carriers import DiskCarrier, HostCarrier
from warmfleet_worker.tiers.complaints import Complaints
from warmfleet_worker.tiers.copies import copies_of
from warmfleet_worker.tiers.disk import DiskStore, Stored
from warmfleet_worker.tiers.format import Identity, copy_sum
from warmfleet_worker.tiers.made import made_with
from warmfleet_worker.tiers.segment import Segment

from tests.unit.tiers.spoils import SPOILS, spoilt
from tests.unit.worker.driver import Driver

COUNT = 1000


class Rig:
    """A chain of blocks, their right copies, and fetches of one block each."""

    def __init__(self) -> None:
        self.engine = SimEngine(block_size=4, total_blocks=8)
        rng = random.Random(9)
        self.size = self.engine.block_bytes
        self.copies = [rng.randbytes(self.size) for _ in range(COUNT)]
        root = root_hash(self.engine.fingerprint, 4)
        token_ids = b"".join(n.to_bytes(4, "little") for n in range(4 * COUNT))
        hashes = chain(root, token_ids, 4)
        self.ids = [token_ids[i * 16 : i * 16 + 16] for i in range(COUNT)]
        self.identities = [
            Identity(own, parent, root, i)
            for i, (own, parent) in enumerate(zip(hashes, [root, *hashes], strict=False))
        ]
        self.request: Request = Driver().request([1])
        self.arrivals: Queue[Arrival] = Queue()

    def fetch(self, i: int, source: Source, stock: Stock) -> Fetch:
        own = self.identities[i]
        self.engine.pool[:] = 0
        piece = Piece(own.hash, self.ids[i], 3, stock)
        return Fetch(i, source, self.request, own.root, own.parent, own.depth, (piece,))

    def outcome(self, carrier: HostCarrier | DiskCarrier, fetch: Fetch) -> Arrival:
        carrier.begin(fetch)
        return self.arrivals.get(timeout=5)

    def in_pool(self) -> bytes:
        return self.engine.pool[3].tobytes()


@pytest.mark.parametrize("how", SPOILS)
def test_wrong_copies_in_host_memory(how: str) -> None:
    rig, rng = Rig(), random.Random(1)
    memory = rig.engine.host_memory(COUNT * rig.size)
    condemned: list[int] = []
    carrier = HostCarrier(rig.engine, copies_of(rig.engine, memory), rig.arrivals.put, condemned.append)
    stocks = [Stock(i, copy_sum(copy)) for i, copy in enumerate(rig.copies)]
    memory[:] = b"".join(rig.copies)
    assert rig.outcome(carrier, rig.fetch(7, Source.HOST, stocks[7])) == Arrival(7, 1)
    assert rig.in_pool() == rig.copies[7]
    memory[:] = b"".join(spoilt(how, rig.copies, i, rng) for i in range(COUNT))
    for i in range(COUNT):
        assert rig.outcome(carrier, rig.fetch(i, Source.HOST, stocks[i])) == Arrival(i, 0, True, "corrupt")
        assert not rig.engine.pool.any()
    assert condemned == list(range(COUNT))
    carrier.close()


def test_a_copy_that_changes_after_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    memory = rig.engine.host_memory(rig.size)
    memory[:] = rig.copies[7]
    carrier = HostCarrier(rig.engine, copies_of(rig.engine, memory), rig.arrivals.put, pytest.fail)
    write = rig.engine.write_blocks

    def late(blocks: Sequence[int], copy: memoryview) -> None:
        memory[0] ^= 1
        write(blocks, copy)

    monkeypatch.setattr(rig.engine, "write_blocks", late)
    assert rig.outcome(carrier, rig.fetch(7, Source.HOST, Stock(0, copy_sum(memory)))) == Arrival(7, 1)
    assert rig.in_pool() == rig.copies[7]
    carrier.close()


@pytest.mark.parametrize("how", SPOILS)
def test_wrong_copies_on_disk(how: str, tmp_path: Path) -> None:
    rig, rng = Rig(), random.Random(2)
    store = DiskStore(tmp_path, made_with(rig.engine), 1 << 30)
    store.put([Stored(*each) for each in zip(rig.identities, rig.ids, rig.copies, strict=True)])
    complaints = Complaints(lambda: 0.0)
    carrier = DiskCarrier(rig.engine, store, rig.arrivals.put, complaints)
    assert rig.outcome(carrier, rig.fetch(7, Source.DISK, Stock())) == Arrival(7, 1)
    assert rig.in_pool() == rig.copies[7]
    (path,) = tmp_path.glob("*.wfkv")
    segment = Segment.open(path, writable=False)
    with path.open("r+b") as file:
        for i in range(COUNT):
            file.seek(segment.start + (i + 1) * segment.record_bytes - rig.size)
            file.write(spoilt(how, rig.copies, i, rng))
    for i in range(COUNT):
        assert rig.outcome(carrier, rig.fetch(i, Source.DISK, Stock())) == Arrival(i, 0, True, "corrupt")
        assert not rig.engine.pool.any()
    assert (store.corrupt, len(store), complaints.counts["corrupt"]) == (COUNT, 0, COUNT)
    carrier.close()
    store.close()


def test_a_block_for_other_tokens_is_not_brought(tmp_path: Path) -> None:
    rig = Rig()
    store = DiskStore(tmp_path, made_with(rig.engine), 1 << 30)
    store.put([Stored(rig.identities[0], rig.ids[1], rig.copies[0])])
    carrier = DiskCarrier(rig.engine, store, rig.arrivals.put, Complaints(lambda: 0.0))
    assert rig.outcome(carrier, rig.fetch(0, Source.DISK, Stock())) == Arrival(0, 0, True, "corrupt")
    assert not rig.engine.pool.any()
    carrier.close()
    store.close()


def test_an_abandoned_fetch_ends() -> None:
    """It waits behind another that is held up."""
    rig, held = Rig(), threading.Event()
    memory = rig.engine.host_memory(rig.size)
    carrier = HostCarrier(
        rig.engine, copies_of(rig.engine, memory), rig.arrivals.put, lambda slot: held.wait(5)
    )
    carrier.begin(rig.fetch(1, Source.HOST, Stock(0, b"wrong")))
    carrier.begin(rig.fetch(2, Source.HOST, Stock(0, copy_sum(memory))))
    carrier.abandon(2)
    held.set()
    assert rig.arrivals.get(timeout=5) == Arrival(1, 0, True, "corrupt")
    assert rig.arrivals.get(timeout=5) == Arrival(2, 0)
    carrier.abandon(2)
    assert not carrier._wanted
    carrier.close()
