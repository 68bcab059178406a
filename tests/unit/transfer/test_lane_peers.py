"""Lanes and who is at their other end: nonsense, other users, memory that is none, a killed source."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import pytest
from warmfleet_proto.errors import Corrupt, WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer import frames, lane
from warmfleet_worker.transfer.here import here
from warmfleet_worker.transfer.lane import Shape
from warmfleet_worker.transfer.lane_source import LaneSource
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.shared_memory import SharedLane
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.transport import Parcel

from tests.unit.transfer.hauls import LEASE, SECRET
from tests.unit.transfer.lanes import KINDS, Pool, haul_of, leased, opened, pull, shape_of


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
