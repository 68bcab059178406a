"""The tcp transport over loopback: what arrives is what was leased, and whatever is not is noticed."""

import contextlib
import os
import random
import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread

import pytest
from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer import frames
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.tcp_source import TcpSource
from warmfleet_worker.transfer.tcp_target import TcpTarget
from warmfleet_worker.transfer.transport import Address, Parcel

from tests.unit.transfer.hauls import LEASE, SECRET, Blocks, Collected, random_blocks, to_their_end

Serve = Callable[[Blocks], Address]


@pytest.fixture
def serve() -> Iterator[Serve]:
    sources = []

    def start(blocks: Blocks) -> Address:
        sources.append(TcpSource(blocks))
        return Address("127.0.0.1", sources[-1].listen("127.0.0.1", 0))

    yield start
    for source in sources:
        source.close()
        assert not source.connections


def pull(address: Address, haul: Collected, streams: int = 1, secret: bytes = SECRET) -> list[Exception]:
    """All streams to their end; what they raised."""
    offer = Offer(port=address.port)
    return to_their_end(lambda: TcpTarget().pull(address.host, offer, LEASE, secret, haul), streams)


@pytest.mark.parametrize(("count", "size", "streams"), [(1, 16, 1), (5000, 128, 3), (37, 700_001, 2)])
def test_everything_arrives(serve: Serve, count: int, size: int, streams: int) -> None:
    made = random_blocks(count, size)
    slabs = Slabs(4, frames.PIECE_BYTES)
    haul = Collected(count, size, slabs)
    assert pull(serve(Blocks(made)), haul, streams) == []
    assert [haul.got[i] for i in range(count)] == made
    assert (haul.bad, haul.missed, slabs.taken) == (0, 0, 0)


def test_blocks_larger_than_a_piece_come_one_by_one(serve: Serve) -> None:
    size = frames.PIECE_BYTES + 4096
    made = random_blocks(3, size)
    haul = Collected(3, size, Slabs(2, size))
    assert pull(serve(Blocks(made)), haul, 2) == []
    assert [haul.got[i] for i in range(3)] == made


@pytest.mark.parametrize(("slab", "most"), [(frames.PIECE_BYTES, 4), (frames.DEVICE_PIECE_BYTES, 8)])
def test_a_target_asks_for_as_much_as_its_slabs_hold(serve: Serve, slab: int, most: int) -> None:
    counts = []

    class Watched(Blocks):
        def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
            counts.append(count)
            return super().fetch(first, count, slab)

    haul = Collected(20, 1 << 20, Slabs(1, slab))
    assert pull(serve(Watched(random_blocks(20, 1 << 20))), haul) == []
    assert (max(counts), sum(counts), haul.good) == (most, 20, 20)


class Damaged(Blocks):
    """Does something to every block, after its sum was made."""

    def __init__(self, blocks: list[bytes], damage: str) -> None:
        super().__init__(blocks)
        self._damage = damage
        self._chance = random.Random(4)

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        sums = self.sums[first : first + count]
        numbers = list(range(first, first + count))
        match self._damage:
            case "flipped":
                return Parcel([self._flipped(self.memory[i]) for i in numbers], sums)
            case "swapped":  # neighbours, each with its own sum
                numbers = [i ^ 1 for i in numbers]
                return Parcel([self.memory[i] for i in numbers], [self.sums[i] for i in numbers])
            case "replayed":  # an old block, with the sum that it had
                return Parcel([self.memory[0]] * count, [self.sums[0]] * count)
            case _:  # the tail of each block is the one of another
                half = self.block_bytes // 2
                parts = [[self.memory[i][:half], self.memory[i - 1][half:]] for i in numbers]
                return Parcel([part for both in parts for part in both], sums)

    def _flipped(self, block: memoryview) -> memoryview:
        data = bytearray(block)
        bit = self._chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        return memoryview(data)


@pytest.mark.parametrize("damage", ["flipped", "swapped", "replayed", "torn"])
def test_a_thousand_damaged_blocks_are_a_thousand_noticed(serve: Serve, damage: str) -> None:
    count = 1001 if damage == "replayed" else 1000  # block 0 in its own place is whole
    haul = Collected(count, 4096, Slabs(4, frames.PIECE_BYTES))
    expected = 1 if damage == "replayed" else 0
    haul.one_by_one()  # so that each is judged for itself
    assert pull(serve(Damaged(random_blocks(count, 4096), damage)), haul) == []
    assert (haul.good, haul.bad) == (expected, 1000)


@pytest.mark.parametrize("cut", [1, 100, 4095])
def test_a_stream_cut_within_a_block_lands_nothing_of_it(cut: int) -> None:
    """Every block is whole but the last, which ends ``cut`` bytes early."""
    blocks = Blocks(random_blocks(2, 4096))

    def source(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as peer:
            peer.recv(frames.HELLO_BYTES, socket.MSG_WAITALL)
            peer.sendall(frames.welcome(4096, 2))
            peer.recv(frames.RANGE_BYTES, socket.MSG_WAITALL)
            peer.sendall((frames.answer(0, blocks.sums) + b"".join(blocks.memory))[:-cut])

    listener = socket.create_server(("127.0.0.1", 0))
    serving = Thread(target=source, args=(listener,))
    serving.start()
    haul = Collected(2, 4096, Slabs(1, frames.PIECE_BYTES))
    (error,) = pull(Address("127.0.0.1", listener.getsockname()[1]), haul)
    serving.join(5)
    assert isinstance(error, WorkerLost)
    assert (haul.good, haul.bad, haul.missed) == (0, 0, 2)


def test_a_source_that_breaks_ends_the_connection(serve: Serve) -> None:
    class Broken(Blocks):
        def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
            raise RuntimeError("no such memory")

    haul = Collected(1, 64, Slabs(1, frames.PIECE_BYTES))
    (error,) = pull(serve(Broken(random_blocks(1, 64))), haul)
    assert isinstance(error, WorkerLost)


def test_a_lease_that_ends_is_told(serve: Serve) -> None:
    blocks = Blocks(random_blocks(3, 64))
    blocks.live = False
    haul = Collected(3, 64, Slabs(2, frames.PIECE_BYTES))
    (error,) = pull(serve(blocks), haul)
    assert "lease has ended" in str(error)
    assert haul.missed == 3


def test_a_wrong_secret_opens_nothing(serve: Serve) -> None:
    haul = Collected(1, 64, Slabs(1, frames.PIECE_BYTES))
    (error,) = pull(serve(Blocks(random_blocks(1, 64))), haul, secret=bytes(16))
    assert isinstance(error, WorkerLost)
    assert haul.good == 0


def test_a_source_with_other_blocks_is_corrupt(serve: Serve) -> None:
    haul = Collected(1, 65, Slabs(1, frames.PIECE_BYTES))
    (error,) = pull(serve(Blocks(random_blocks(1, 64))), haul)
    assert isinstance(error, Corrupt)
    assert "64 bytes" in str(error)


GOOD_HELLO = frames.hello(LEASE, SECRET)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b" " * 64,
        frames.ask(0, 1) + bytes(64),  # a question before the greeting
        frames.hello(LEASE + 1, SECRET),
        GOOD_HELLO + frames.ask(0, 0),
        GOOD_HELLO + frames.ask(9, 2),
        GOOD_HELLO + frames.ask(0, 11),
        GOOD_HELLO + frames.ask(2**32 - 1, 1),
        GOOD_HELLO + frames.ask(2**32 - 1, 2**32 - 1),
    ],
    ids=["http", "no greeting", "other lease", "nothing", "past the end", "too many", "far", "wraps"],
)
def test_nonsense_ends_the_connection_and_is_counted(sent: bytes) -> None:
    source = TcpSource(Blocks(random_blocks(10, 64)))
    port = source.listen("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # it left without reading all
            while peer.recv(4096):
                pass
    source.close()
    assert source.refused == 1


def test_streams_of_a_haul_given_up_end_at_once(serve: Serve) -> None:
    haul = Collected(100, 4096, Slabs(1, frames.PIECE_BYTES))
    haul.stop()
    assert pull(serve(Blocks(random_blocks(100, 4096))), haul, 3) == []
    assert haul.good == 0


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    haul = Collected(1, 64, Slabs(1, frames.PIECE_BYTES))
    (error,) = pull(Address("127.0.0.1", port), haul)
    assert "no data connection" in str(error)


class Held(Blocks):
    """Nothing is given before it ``begins``, and the last tenth not before it ``ends``."""

    def __init__(self, blocks: Sequence[memoryview]) -> None:
        super().__init__(blocks)
        self.begins, self.ends = Event(), Event()

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel | None:
        assert self.begins.wait(60)
        assert first + count < 0.9 * self.blocks or self.ends.wait(60)
        return super().fetch(first, count, slab)


def test_two_pulls_share_the_link(serve: Serve) -> None:
    """The second begins when the first is under way and has all slabs, and does not wait for its end."""
    count, size = 400, 1 << 20
    blocks = Held([memoryview(bytearray(size))] * count)
    slabs = Slabs(2, frames.PIECE_BYTES)
    first = Collected(count, size, slabs, keep=False)
    address = serve(blocks)
    long = Thread(target=pull, args=(address, first, 2))
    long.start()
    while slabs.taken < 2:  # the thread's
        time.sleep(0.001)
    second = Collected(count // 8, size, slabs, keep=False)
    blocks.begins.set()
    assert pull(address, second, 2) == []
    assert second.good == count // 8
    assert first.good < count, "the long one cannot have ended"
    blocks.ends.set()
    long.join(60)
    assert (first.good, slabs.taken) == (count, 0)


def test_a_source_out_of_descriptors_serves_again_when_there_are_some(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    made = random_blocks(3, 64)
    address = serve(Blocks(made))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as waiting:
        free = os.open("/dev/null", os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            waiting.connect(address)
            while not caplog.records:  # another thread's
                time.sleep(0.001)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    haul = Collected(3, 64, Slabs(4, frames.PIECE_BYTES))
    assert pull(address, haul) == []
    assert haul.good == 3
