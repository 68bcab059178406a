"""Lanes over NIXL: memory of the source's host that the target reads through whatever connects the two hosts,
by RDMA where there is some. An optional extra, ``warmfleet[nixl]``.

Blocks pass through the memory of both hosts, and are proven there as over tcp. A peer can read no memory but
the slabs, which are all that is registered.
"""

import secrets
import time
from collections.abc import Sequence
from struct import Struct
from threading import Lock
from typing import Any

from warmfleet_proto.errors import WorkerLost

from warmfleet_worker.engine.base import Engine
from warmfleet_worker.transfer.frames import block_sums, piece_blocks
from warmfleet_worker.transfer.lane import Landing, Shape, fetched
from warmfleet_worker.transfer.tcp_stream import STALL_S, TcpStream
from warmfleet_worker.transfer.transport import Filling, Lot

_SLABS = 4
_SHOWN = Struct("<IQ")  # bytes of the agent's description, address of the lane
_MOST_BYTES = 1 << 20  # of a description
_LOOK_S = 50e-6


class NixlLanes:
    """See ``lane.Lanes``. One agent, which is not used by two threads at once."""

    name = "nixl"
    leaves_the_host = True

    def __init__(self, engine: Engine, streams: int, shape: Shape | None = None) -> None:
        """Raises ImportError."""
        from nixl._api import nixl_agent, nixl_agent_config

        self.streams = streams
        self.engine = engine
        self.lock = Lock()
        self.agent: Any = nixl_agent(f"warmfleet-{secrets.token_hex(8)}", nixl_agent_config(backends=["UCX"]))
        self._shape = shape or Shape(_SLABS, piece_blocks(engine.block_bytes) * engine.block_bytes)

    def make(self) -> "NixlLane":
        return NixlLane(self, self._shape)

    def open(self, stream: TcpStream, shape: Shape) -> "NixlWindow":
        size, address = _SHOWN.unpack(stream.receive(_SHOWN.size))
        if size > _MOST_BYTES:
            raise WorkerLost("the source describes itself at too great a length")
        description = stream.receive(size)
        with self.lock:
            try:
                peer = self.agent.add_remote_agent(description)
            except Exception as error:  # of its C++ side, of no common kind
                raise WorkerLost(f"the source's memory cannot be read: {error}") from None
        return NixlWindow(self, shape, _name(peer), address)

    def close(self) -> None:
        """The agent goes with the last lane and window."""


class _Registered:
    """Memory that the agent knows."""

    def __init__(self, lanes: NixlLanes, shape: Shape) -> None:
        self.shape = shape
        self._lanes = lanes
        self._memory = lanes.engine.host_memory(shape.slabs * shape.slab_bytes)
        self._address = _address(self._memory)
        place = [(self._address, len(self._memory), 0, "")]
        with lanes.lock:
            self._known = lanes.agent.register_memory(place, "DRAM")

    def close(self) -> None:
        with self._lanes.lock:
            self._lanes.agent.deregister_memory(self._known)

    def _slab(self, slab: int) -> memoryview:
        return self._memory[slab * self.shape.slab_bytes : (slab + 1) * self.shape.slab_bytes]


class NixlLane(_Registered):
    """See ``lane.Lane``."""

    def show(self, stream: TcpStream) -> None:
        with self._lanes.lock:
            description = self._lanes.agent.get_partial_agent_metadata(self._known, True, ["UCX"])
        stream.send([_SHOWN.pack(len(description), self._address), description])

    def fill(self, slab: int, lot: Lot, first: int, count: int) -> Filling:
        return fetched(lot, first, count, self._slab(slab))


class NixlWindow(_Registered):
    """See ``lane.Window``."""

    def __init__(self, lanes: NixlLanes, shape: Shape, peer: str, address: int) -> None:
        super().__init__(lanes, shape)
        self._peer = peer
        self._there = address

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        lanes, size = self._lanes, len(targets) * self._lanes.engine.block_bytes
        at, agent = slab * self.shape.slab_bytes, self._lanes.agent
        with lanes.lock:
            here = agent.get_xfer_descs([(self._address + at, size, 0)], "DRAM")
            there = agent.get_xfer_descs([(self._there + at, size, 0)], "DRAM")
            reading = agent.initialize_xfer("READ", here, there, self._peer)
            state = agent.transfer(reading)

        def land() -> list[bytes]:
            self._wait(reading, state)
            copy = self._slab(slab)
            sums = block_sums(copy, lanes.engine.block_bytes, seeds)
            lanes.engine.write_blocks(targets, copy)
            return sums

        return land

    def _wait(self, reading: Any, state: str) -> None:
        """Waits until all is read. Raises WorkerLost."""
        until = time.monotonic() + STALL_S
        while state == "PROC" and time.monotonic() < until:
            time.sleep(_LOOK_S)
            with self._lanes.lock:
                state = self._lanes.agent.check_xfer_state(reading)
        with self._lanes.lock:
            reading.release()
        if state != "DONE":
            raise WorkerLost(f"reading the source's memory ended with {state}")


def _address(memory: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _name(peer: str | bytes) -> str:
    return peer.decode() if isinstance(peer, bytes) else peer
