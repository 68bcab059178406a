"""The other process of the moving bars: a source of blocks on a device of its own, led by a pipe."""

import asyncio
import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any, NamedTuple

import torch
import uvloop
from torch import Tensor
from warmfleet_worker.engine.access import access, host_memory
from warmfleet_worker.transfer.cuda_memory import CudaMemory
from warmfleet_worker.transfer.data_port import DataPort
from warmfleet_worker.transfer.device_lanes import DeviceMemory
from warmfleet_worker.transfer.frames import block_sums
from warmfleet_worker.transfer.lane import Shape
from warmfleet_worker.transfer.lane_source import LaneSource
from warmfleet_worker.transfer.tcp_source import TcpSource
from warmfleet_worker.transfer.transport import Fill, Filling, Parcel

from tests.bars.gpu.spans import Spans, TimedLanes

PATIENCE_S = 60.0  # for one thing to be done
FLEET_KEY = bytes(range(32))


class Scattered:
    """As much of an engine as moving takes, over blocks of random bits; a Lot of some of them, and its Shelf.

    Blocks are seeded with their places in the lot.
    """

    def __init__(self, words: Tensor, numbers: Sequence[int]) -> None:
        """``words`` int32 [blocks, words]."""
        self.words = words
        self.numbers = list(numbers)
        self.block_bytes = words[0].nbytes
        self.blocks = len(self.numbers)
        self.access = access(words)

    def open(self, lease: int, secret: bytes) -> "Scattered":
        return self

    def fetch(self, first: int, count: int, slab: memoryview) -> Parcel:
        self.access.read(self.numbers[first : first + count], slab)
        return Parcel(
            [slab[: count * self.block_bytes]],
            block_sums(slab, self.block_bytes, range(first, first + count)),
        )

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        return fill(self.numbers[first : first + count], range(first, first + count))

    def write_blocks(self, blocks: Sequence[int], copy: memoryview) -> None:
        self.access.write(blocks, copy)


def random_words(blocks: int, words: int, device: torch.device) -> Tensor:
    made = torch.empty((blocks, words), dtype=torch.int32, device=device)
    for part in made.split(256):
        part.random_(-(2**31), 2**31 - 1)
    return made


def fingerprints(words: Tensor, numbers: Sequence[int]) -> list[int]:
    """Of blocks, by plain torch: nothing of what is measured takes part."""
    found: list[int] = []
    index = torch.tensor(list(numbers), device=words.device)
    factors = torch.arange(1, words.shape[1] + 1, device=words.device) * 2 + 1
    for part in index.split(64):
        found += (words[part].long() * factors).sum(1).tolist()
    return found


def memory_of(device: torch.device) -> DeviceMemory:
    if device.type == "cuda":
        return CudaMemory(device.index or 0)
    from tests.unit.transfer.lanes import HostMemory

    return HostMemory()


def settle() -> None:
    """As the worker's program does when it has started: what is loaded is not looked through any more."""
    gc.collect()
    gc.freeze()


class Place(NamedTuple):
    """Where a worker is found."""

    name: str
    address: str
    epoch: int


class Giver:
    """The parent's end. Use as a context manager."""

    def __init__(self, device: str) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device), daemon=True)
        self._process.start()

    def __enter__(self) -> "Giver":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def start(self, what: str, *arguments: Any) -> None:
        self._pipe.send((what, arguments))

    def result(self, within_s: float = PATIENCE_S) -> Any:
        if not self._pipe.poll(within_s):
            raise TimeoutError("the source does not answer")
        failed, answer = self._pipe.recv()
        if failed:
            raise RuntimeError(f"in the source's process:\n{answer}")
        return answer

    def ask(self, what: str, *arguments: Any) -> Any:
        self.start(what, *arguments)
        return self.result()


def _serve(pipe: Connection, device: str) -> None:
    source = _Source(torch.device(device))
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = getattr(source, what)(*arguments)
            pipe.send((False, answer))
        except Exception:
            pipe.send((True, traceback.format_exc()))


class _Source:
    """What can be asked of it, by name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Scattered | None = None
        self._ports: list[DataPort] = []
        self._spans = Spans()  # of the last lanes
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def ready(self) -> str:
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    def pool(self, blocks: int, words: int, numbers: Sequence[int]) -> list[int]:
        """Their fingerprints."""
        self._pool = Scattered(random_words(blocks, words, self._device), numbers)
        return fingerprints(self._pool.words, numbers)

    def other(self, make: Callable[[Scattered], Scattered]) -> None:
        """Another lot of the same blocks."""
        assert self._pool is not None
        self._pool = make(self._pool)

    def block(self, place: int) -> bytes:
        assert self._pool is not None
        return self._pool.words[self._pool.numbers[place]].cpu().numpy().tobytes()

    def lanes(self, shape: Shape) -> str:
        assert self._pool is not None
        lanes = TimedLanes(self._pool.words, memory_of(self._device), shape)
        lanes.warm_up()  # compiling on a fresh machine takes longer than a peer waits for an answer
        self._spans = lanes.spans
        self._ports.append(LaneSource(self._pool, lanes, 4))
        return self._ports[-1].listen_here()

    def tcp(self) -> int:
        assert self._pool is not None
        pinned = self._device.type == "cuda"
        self._ports.append(TcpSource(self._pool, allocate=lambda size: host_memory(size, pinned=pinned)))
        return self._ports[-1].listen("127.0.0.1", 0)

    def close(self) -> None:
        while self._ports:
            self._ports.pop().close()

    def free(self) -> None:
        self.close()
        self._pool = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def spans(self, pulls: int) -> str:
        """Since the last call."""
        return self._spans.told(pulls)

    def cpu_s(self) -> float:
        return time.process_time()

    def worker(self, make: Callable[[torch.device], Any], settings: dict[str, Any]) -> Place:
        """A worker with the engine that ``make`` gives."""
        from warmfleet_proto.grant import source_key

        key = Path(mkdtemp()) / "source.key"
        key.write_text(source_key(FLEET_KEY, "source").hex())
        settings = {**settings, "name": "source", "transfer": {"key_file": str(key)}}
        loop = uvloop.new_event_loop()
        Thread(target=loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_start(make(self._device), settings), loop).result(PATIENCE_S)


async def _start(engine: Any, settings: dict[str, Any]) -> Place:
    import msgspec
    from warmfleet_worker.config import Config
    from warmfleet_worker.worker import Worker

    worker = Worker(msgspec.convert(settings, Config), engine)
    await worker.start()
    settle()
    return Place("source", worker.grpc_address, worker.presence.epoch)
