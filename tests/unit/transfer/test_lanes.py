"""Transports over lanes: what arrives is what was leased, and whatever is not is noticed."""

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import pytest
import torch
from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.engine.mover import Mover
from warmfleet_worker.transfer import frames, lane
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.here import here
from warmfleet_worker.transfer.lane import Lanes, Shape
from warmfleet_worker.transfer.lane_source import LaneSource
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.shared_memory import SharedLane
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot, Parcel

from tests.unit.transfer.hauls import LEASE, SECRET, Blocks
from tests.unit.transfer.lanes import KINDS, HostMemory, Pool, opened, shape_of

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


def leased(pool: Pool) -> Blocks:
    """All blocks of a pool, seeded with their numbers."""
    return Blocks([memoryview(block.numpy()).cast("B") for block in pool.words])


def haul_of(pool: Pool, targets: Sequence[int]) -> PoolHaul:
    engine: Any = pool
    return PoolHaul(engine, None, targets, range(len(targets)), lambda: None)


def pull(
    target: LaneTarget, offer: Offer, haul: PoolHaul, streams: int = 1, secret: bytes = SECRET
) -> list[Exception]:
    """All streams to their end; what they raised."""
    errors: list[Exception] = []

    def stream() -> None:
        try:
            target.pull("", offer, LEASE, secret, haul)
        except (WorkerLost, Corrupt) as error:
            errors.append(error)

    threads = [Thread(target=stream) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    return errors


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
    assert haul.take(False, 3) is not None, "what was asked for is wanted again"


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


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b" " * 64,
        frames.hello(LEASE + 1, SECRET),
        frames.hello(LEASE, SECRET) + lane.ask(0, 0, 0),
        frames.hello(LEASE, SECRET) + lane.ask(0, 3, 0),
        frames.hello(LEASE, SECRET) + lane.ask(9, 2, 0),
        frames.hello(LEASE, SECRET) + lane.ask(2**32 - 1, 1, 0),
        frames.hello(LEASE, SECRET) + lane.ask(0, 1, 3),
    ],
    ids=["http", "other lease", "nothing", "more than a slab", "past the end", "far", "no such slab"],
)
def test_nonsense_ends_the_connection_and_is_counted(sent: bytes) -> None:
    pool = Pool.random(10, 64)
    source = LaneSource(leased(pool), KINDS["shm"](pool, shape_of(pool, 2)), 1)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"\0{source.listen_here()}")
        peer.settimeout(5)
        peer.sendall(sent)
        with contextlib.suppress(ConnectionResetError):  # it left without reading all
            while peer.recv(4096):
                pass
    source.close()
    assert source.refused == 1


def test_memory_that_could_shrink_is_not_looked_into() -> None:
    """Reading what a file has lost would kill the target."""
    pool = Pool.random(1, 64)
    lanes = KINDS["shm"](pool, shape_of(pool, 1))

    class Unsealed(SharedLane):
        def show(self, stream: TcpStream) -> None:
            file = os.memfd_create("unsealed")
            os.ftruncate(file, self.shape.slabs * self.shape.slab_bytes)
            stream.send_file(file)
            os.close(file)

    class Unsealing:
        def make(self) -> SharedLane:
            engine: Any = pool
            return Unsealed(engine, shape_of(pool, 1))

    unsealing: Any = Unsealing()
    with pytest.raises(WorkerLost, match="could shrink"):
        opened(unsealing, lanes)


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


@pytest.mark.parametrize("shape", [Shape(2**32 - 1, 4096), Shape(3, 2**63), Shape(2**20, 2**44)])
def test_a_lane_of_no_sane_size_is_refused(shape: Shape) -> None:
    ours, theirs = (TcpStream(each) for each in socket.socketpair(socket.AF_UNIX))
    lane.send_welcome(ours, 256, 4, shape)
    try:
        with pytest.raises(Corrupt, match="slabs"):
            lane.receive_welcome(theirs, 256, 4)
    finally:
        ours.close()
        theirs.close()


def test_a_file_beside_the_point_is_closed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        file = os.memfd_create("test")
        socket.send_fds(ours, [b"x"], [file])
        os.close(file)
        with pytest.raises(WorkerLost, match="no file"):
            TcpStream(theirs).receive_file()
        assert len(os.listdir("/proc/self/fd")) == before


def test_only_the_own_host_is_reached() -> None:
    pool = Pool.random(1, 64)
    target = LaneTarget(KINDS["shm"](pool, shape_of(pool, 1)))
    assert target.reaches(Offer(transport="shm", host=here(), socket="x"))
    assert not target.reaches(Offer(transport="shm", host="another", socket="x"))
    assert not target.reaches(Offer(transport="shm"))
    (error,) = pull(target, Offer(host=here(), socket="warmfleet-nobody"), haul_of(pool, [0]))
    assert isinstance(error, WorkerLost)


_LISTENING = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(chr(0) + sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    listener.accept()[0].recv(1)
"""
_CONNECTING = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(chr(0) + sys.argv[1])
    peer.recv(1)
"""


def _as_another(script: str, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-ISc", script, name], stdout=subprocess.PIPE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_source_is_not_told_the_secret() -> None:
    """It may have taken the name of a source that has ended."""
    pool, name = Pool.random(1, 64), f"test-{secrets.token_hex(8)}"
    target = LaneTarget(KINDS["shm"](pool, shape_of(pool, 1)))
    with _as_another(_LISTENING, name) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        (error,) = pull(target, Offer(host=here(), socket=name), haul_of(pool, [0]))
        assert "another user" in str(error)
    assert process.returncode == 0


def test_a_peer_over_the_network_is_no_other_user() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        assert not TcpStream(ours).is_another_users
        assert not TcpStream(theirs).is_another_users


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_target_is_refused() -> None:
    pool = Pool.random(1, 64)
    source = LaneSource(leased(pool), KINDS["shm"](pool, shape_of(pool, 1)), 1)
    with _as_another(_CONNECTING, source.listen_here()) as process:
        pass
    source.close()
    assert (process.returncode, source.refused) == (0, 1)


BLOCKS, WORDS = 64, 1024


def _giving(ready: Connection) -> None:
    """A source's process, which fills one slab and is then stuck."""
    pool = Pool.random(BLOCKS, WORDS, seed=3)
    blocks = leased(pool)
    fetch = blocks.fetch

    def once(first: int, count: int, slab: memoryview) -> Parcel | None:
        if first >= 16:
            ready.send("stuck")
            signal.pause()
        return fetch(first, count, slab)

    blocks.fetch = once  # type: ignore[method-assign]
    source = LaneSource(blocks, KINDS["shm"](pool, Shape(2, 8 * pool.block_bytes)), 1)
    ready.send(source.listen_here())
    ready.recv()


def test_a_source_killed_on_the_way_loses_only_what_had_not_come() -> None:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_giving, args=(theirs,), daemon=True)
    process.start()
    offer = Offer(host=here(), socket=ours.recv())
    pool = Pool(Pool.random(BLOCKS, WORDS).words.zero_())
    haul = haul_of(pool, range(BLOCKS))
    errors: list[list[Exception]] = []
    taking = LaneTarget(KINDS["shm"](pool, Shape(2, 8 * pool.block_bytes)))
    thread = Thread(target=lambda: errors.append(pull(taking, offer, haul)))
    thread.start()
    assert ours.recv() == "stuck"
    process.kill()
    thread.join(10)
    process.join(5)
    assert isinstance(errors[0][0], WorkerLost)
    assert haul.arrived == 16
    assert (pool.words[:16] == Pool.random(BLOCKS, WORDS, seed=3).words[:16]).all()
