"""Transports over lanes: what arrives is what was leased, and whatever is not is noticed."""

import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.engine.mover import Mover
from warmfleet_worker.transfer import frames, lane, lane_target
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.here import here
from warmfleet_worker.transfer.lane import Landing, Lanes, Window
from warmfleet_worker.transfer.lane_source import LaneSource
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.shared_memory import SharedLane
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot, Piece

from tests.unit.transfer.hauls import LEASE, SECRET, Blocks
from tests.unit.transfer.lanes import KINDS, HostMemory, Pool, haul_of, leased, opened, pull, shape_of

Serve = Callable[[Lanes, Blocks], Offer]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def serve() -> Iterator[Serve]:
    sources = []

    def start(lanes: Lanes, blocks: Blocks, most: int = 4) -> Offer:
        sources.append(LaneSource(blocks, lanes, most))
        return Offer(transport=lanes.name, host=here(), socket=sources[-1].listen_here())

    yield start
    for source in sources:
        source.close()
        assert not source.connections


@kinds
@pytest.mark.parametrize(
    ("blocks", "words", "streams"), [(1, 4, 1), (25, 1100, 1), (40, 1024, 2), (7, 5001, 3)]
)
def test_everything_arrives_where_it_belongs(
    serve: Serve, kind: str, blocks: int, words: int, streams: int
) -> None:
    source = Pool.random(blocks, words)
    target, shape = Pool.empty(source), shape_of(source, 3)
    targets = random.Random(1).sample(range(blocks), blocks)
    haul = haul_of(target, targets)
    offer = serve(KINDS[kind](source, shape), leased(source))
    assert pull(LaneTarget(KINDS[kind](target, shape)), offer, haul, streams) == []
    assert (haul.arrived, haul.bad, haul.received_bytes) == (blocks, 0, source.words.nbytes)
    assert (target.words[targets] == source.words).all()


DAMAGES = ("flipped", "swapped", "replayed", "torn")


@kinds
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_block_is_noticed(kind: str, damage: str) -> None:
    """Each in its slab after its sum was made, as a source that goes wrong would have it."""
    count, words = (1001 if kind != "device" or torch.cuda.is_available() else 41), 64
    source = Pool.random(count, words)
    sound, target = source.words.clone(), Pool.empty(source)
    shape = shape_of(source, count)
    giving, looking = opened(KINDS[kind](source, shape), KINDS[kind](target, shape))
    wanted = giving.fill(0, leased(source), 0, count)()
    assert wanted is not None
    assert looking.start(0, range(count), range(count))() == wanted
    chance = random.Random(4)
    for i in range(1, count):
        match damage:
            case "flipped":
                source.words[i, chance.randrange(words)] ^= 1 << chance.randrange(31)
            case "swapped":
                source.words[i] = sound[i ^ 1 if i < count - 1 else 1]
            case "replayed":
                source.words[i] = sound[0]
            case "torn":
                source.words[i, words // 2 :] = sound[i - 1, words // 2 :]
    theirs = giving.fill(0, leased(source), 0, count)()  # the damage is in the slab now
    got = looking.start(0, range(count), range(count))()
    assert got == theirs
    assert [i for i in range(count) if got[i] == wanted[i]] == [0]
    looking.close()
    giving.close()


@kinds
def test_a_whole_block_in_anothers_place_does_not_agree(kind: str) -> None:
    """With the sum that it had in its own: sums are seeded."""
    source = Pool.random(2, 64)
    shape = shape_of(source, 2)
    giving, looking = opened(KINDS[kind](source, shape), KINDS[kind](Pool.empty(source), shape))
    moved = giving.fill(0, leased(source), 0, 2)()
    assert moved is not None
    got = looking.start(0, [0, 1], [1, 0])()
    assert not set(moved) & set(got)
    looking.close()
    giving.close()


@kinds
def test_a_damaged_piece_ends_the_pull_and_counts(serve: Serve, kind: str) -> None:
    source = Pool.random(9, 64)
    target, shape = Pool.empty(source), shape_of(source, 3)
    blocks = leased(source)
    blocks.sums = [b"no such sum here"] * 9
    blocks.give = lambda first, count, fill: lambda: blocks.sums[:count]  # type: ignore[method-assign]
    haul = haul_of(target, range(9))
    assert pull(LaneTarget(KINDS[kind](target, shape)), serve(KINDS[kind](source, shape), blocks), haul) == []
    assert haul.bad == 3
    assert haul.arrived == 0


@kinds
def test_a_lease_that_ends_is_told(serve: Serve, kind: str) -> None:
    source = Pool.random(3, 64)
    blocks, shape = leased(source), shape_of(source, 1)
    blocks.live = False
    haul = haul_of(Pool.empty(source), range(3))
    (error,) = pull(LaneTarget(KINDS[kind](source, shape)), serve(KINDS[kind](source, shape), blocks), haul)
    assert "lease has ended" in str(error)
    assert haul.take(3) is not None, "what was asked for is wanted again"


def test_a_wrong_secret_opens_nothing(serve: Serve) -> None:
    source = Pool.random(1, 64)
    lanes = KINDS["shm"](source, shape_of(source, 1))
    haul = haul_of(Pool.empty(source), [0])
    (error,) = pull(LaneTarget(lanes), serve(lanes, leased(source)), haul, secret=bytes(16))
    assert isinstance(error, WorkerLost)


def test_other_blocks_are_corrupt(serve: Serve) -> None:
    source, other = Pool.random(1, 64), Pool.random(1, 65)
    lanes = KINDS["shm"](source, shape_of(source, 1))
    (error,) = pull(LaneTarget(lanes), serve(lanes, leased(source)), haul_of(other, [0]))
    assert isinstance(error, Corrupt)


def test_lanes_are_bounded_and_used_again(serve: Serve) -> None:
    source = Pool.random(4, 64)
    target, lanes = Pool.empty(source), KINDS["shm"](source, shape_of(source, 1))
    offer = serve(lanes, leased(source), 1)  # type: ignore[call-arg]
    taking = LaneTarget(KINDS["shm"](target, shape_of(source, 1)))
    with socket.socket(socket.AF_UNIX) as held:
        held.connect(f"\0{offer.socket}")
        stream = TcpStream(held)
        stream.send([frames.hello(LEASE, SECRET)])
        lane.receive_welcome(stream, source.block_bytes, 4)
        os.close(stream.receive_file())
        (error,) = pull(taking, offer, haul_of(target, range(4)))
        assert "no lane to spare" in str(error)
        stream.send([lane.ask(0, 1, 0)])
        stream.receive(frames.RANGE_BYTES + frames.SUM_BYTES)
    while True:  # the source's thread sees the end of the connection a moment later
        haul = haul_of(target, range(4))
        if not pull(taking, offer, haul):
            break
    assert haul.arrived == 4


def test_all_that_is_asked_for_is_begun_before_the_first_is_waited_for() -> None:
    """A device then has work while the source answers."""
    pool, order = Pool.random(6, 64), []

    class Watched(SharedLane):
        def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
            order.append(f"begin {slab}")
            filling = super().fill(slab, lot, first, count)

            def wait() -> list[bytes] | None:
                order.append(f"wait {slab}")
                return filling()

            return wait

    class Watching:
        name, leaves_the_host = "shm", False

        def make(self) -> SharedLane:
            engine: Any = pool
            return Watched(engine, shape_of(pool, 2))

    watching: Any = Watching()
    source = LaneSource(leased(pool), watching, 1)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"\0{source.listen_here()}")
        stream = TcpStream(peer)
        stream.send([frames.hello(LEASE, SECRET), lane.ask(0, 2, 2), lane.ask(2, 2, 0), lane.ask(4, 2, 1)])
        lane.receive_welcome(stream, pool.block_bytes, 6)
        os.close(stream.receive_file())
        for first in (0, 2, 4):
            assert frames.is_answer(stream.receive(frames.RANGE_BYTES), first, 2)
            stream.receive(2 * frames.SUM_BYTES)
    source.close()
    assert order == ["begin 2", "begin 0", "begin 1", "wait 2", "wait 0", "wait 1"]


def test_what_has_landed_is_told_of_when_more_has_been_begun(serve: Serve) -> None:
    """Who hears of it takes the interpreter's lock, and a device that has nothing to do waits for that."""
    source, order = Pool.random(12, 64), []
    target, shape = Pool.empty(source), shape_of(source, 2)
    taking, haul = KINDS["shm"](target, shape), haul_of(target, range(12))
    open_window, landed = taking.open, haul.landed

    class Watched:
        def __init__(self, window: Window) -> None:
            self._window, self.close = window, window.close

        def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
            order.append(("begun", targets[0]))
            return self._window.start(slab, targets, seeds)

    def told(piece: Piece, good: int, slab: memoryview | None = None) -> None:
        order.append(("told", piece.first))
        landed(piece, good, slab)

    taking.open = lambda stream, shape: Watched(open_window(stream, shape))  # type: ignore[method-assign]
    haul.landed = told  # type: ignore[method-assign]
    assert pull(LaneTarget(taking), serve(KINDS["shm"](source, shape), leased(source)), haul) == []
    assert haul.arrived == 12
    for first in range(0, 12, 2):
        assert order.index(("told", first)) > order.index(("begun", min(first + 4, 10)))


def test_a_connection_made_ahead_is_the_next_pulls(serve: Serve) -> None:
    source = Pool.random(4, 64)
    target, shape = Pool.empty(source), shape_of(source, 2)
    port, accepted = serve(KINDS["shm"](source, shape), leased(source)), []
    taking = LaneTarget(KINDS["shm"](target, shape))
    connect = lane_target._connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane_target, "_connect", lambda name: accepted.append(connect(name)) or accepted[-1])
        for dials in (1, 1, 3):  # the later ones take the place of what waited
            for _ in range(dials):
                taking.dial(port)
            haul = haul_of(target, range(4))
            assert pull(taking, port, haul) == []
            assert haul.arrived == 4
        assert len(accepted) == 5
        taking.dial(port)
        accepted[-1].stop()  # as when the source has waited for too long
        assert pull(taking, port, haul_of(target, range(4))) == []
        assert len(accepted) == 7
        taking.dial(Offer(socket="nobody listens"))
        taking.dial(port)
        taking.close()
        with pytest.raises(WorkerLost):
            accepted[-1].send([b"closed"])


@pytest.mark.parametrize("error", [MemoryError, OSError, torch.OutOfMemoryError])
def test_a_lane_that_cannot_be_had_is_no_lane(serve: Serve, error: type[Exception]) -> None:
    class Full:
        name, streams, leaves_the_host = "shm", 1, False

        def make(self) -> Any:
            raise error("no room")

    source = Pool.random(1, 64)
    full: Any = Full()
    taking, offer = LaneTarget(KINDS["shm"](source, shape_of(source, 1))), serve(full, leased(source))
    for _ in range(6):  # more often than there may be lanes: a failure takes none of them
        (lost,) = pull(taking, offer, haul_of(source, [0]))
        assert "no lane to spare" in str(lost)


def test_device_memory_that_nothing_can_move_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams can be out, as memory can."""
    pool, memory = Pool.random(1, 64), HostMemory()
    lanes = DeviceLanes(pool.words, memory, shape_of(pool, 1))

    def none() -> Mover:
        raise RuntimeError

    giving = lanes.make()
    ours, theirs = (TcpStream(each) for each in socket.socketpair(socket.AF_UNIX))
    giving.show(ours)
    monkeypatch.setattr(lanes, "take_mover", none)
    for attempt in (lanes.make, lambda: lanes.open(theirs, giving.shape)):
        with pytest.raises(RuntimeError):
            attempt()
    giving.close()
    assert not memory.in_use
    ours.close()
    theirs.close()


def test_a_slab_that_is_filled_anew_while_it_is_read_does_not_agree() -> None:
    """A target that was stopped for longer than its source waits for it looks into another pull's slab."""
    source, other = Pool.random(2, 64), Pool.random(2, 64, seed=1)
    shape = shape_of(source, 2)
    target = Pool.empty(source)
    giving, looking = opened(KINDS["shm"](source, shape), KINDS["shm"](target, shape))
    write = target.write_blocks

    def late(blocks: Sequence[int], copy: memoryview) -> None:
        giving.fill(0, leased(other), 0, 2)()
        write(blocks, copy)

    target.write_blocks = late  # type: ignore[method-assign]
    wanted = giving.fill(0, leased(source), 0, 2)()
    got = looking.start(0, [0, 1], [0, 1])()
    assert (target.words == other.words).all()
    assert wanted is not None
    assert not set(got) & set(wanted)
    looking.close()
    giving.close()
