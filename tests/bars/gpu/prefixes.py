"""A prefix of 32k tokens and 128 new ones: what the first token costs, from wherever the prefix lies.

The target worker is in this process, its source in another on another GPU, with the same random weights:
blocks that were pulled lead to the same token, or they are not what they should be.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import uvloop
from warmfleet_proto.channel import connect
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_proto.transfer_pb2 import Claims, LeaseResponse, Pull
from warmfleet_proto.worker_pb2 import StatusRequest
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_router.grant import Granter
from warmfleet_worker.config import Config
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.fetch import Arrival
from warmfleet_worker.models.config import ModelConfig
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.lane import Landing, Shape, Window
from warmfleet_worker.transfer.tcp_stream import TcpStream
from warmfleet_worker.transfer.trip import Trip
from warmfleet_worker.worker import Worker

from tests.bars.gpu import model
from tests.bars.gpu.giver import FLEET_KEY, Giver, Place, settle
from tests.bars.gpu.spans import Spans
from tests.bars.rows import Row
from tests.process.gateway import Stream, packed

ON_GPU = torch.cuda.is_available()
TINY = ModelConfig(
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=128,
    vocab_size=1000,
    max_context=2048,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
SHAPE = model.LLAMA_3_8B if ON_GPU else TINY
PREFIX, NEW, CHUNK = (32_768, 128, 8192) if ON_GPU else (512, 32, 128)
PULLS, HITS = 5, 7
NEEDED = (PREFIX + NEW + 16) // 16 + 1  # blocks of a request
HELD = 2 * NEEDED + 4  # by the target: fetches may fill half of it
GIVEN = (PULLS + 1) * NEEDED  # by the source
NEARLY = 0.7  # a few blocks may still be on the device
FASTER = 40  # than prefilling it
LINK = 250e9
WHOLE = "lease to commit"

Prompt = npt.NDArray[np.uint32]
Note = Callable[[Row], None]
Say = Callable[[object], None]


def make_engine(blocks: int, device: torch.device) -> TorchEngine:
    return model.engine(blocks, SHAPE, str(device))


def run(giver: Giver, note: Note, say: Say) -> None:
    settings = {"engine": "torch", "model": "random", "chunk_tokens": CHUNK}
    giver.start("worker", partial(make_engine, GIVEN), settings)
    device = torch.device("cuda:0" if ON_GPU else "cpu")
    engine = make_engine(HELD, device)
    say("the target's engine is made")
    place = giver.result()
    say("the source's worker serves")
    with TemporaryDirectory() as folder:
        uvloop.run(_measure(_Case(engine, settings, place, Path(folder), note, say)))


class _Case(NamedTuple):
    engine: TorchEngine
    settings: dict[str, Any]
    source: Place
    folder: Path
    note: Note
    say: Say


class _End(NamedTuple):
    stub: Any
    stream: Stream
    handles: Iterator[int]

    async def ask(self, prompt: Prompt, **submit: Any) -> tuple[float, int, Any]:
        """Seconds to the first token, that token, and what the worker said of the start. The prompt is packed
        already: that is no work of the worker's."""
        handle = next(self.handles)
        began = time.perf_counter()
        await self.stream.submit(handle, prompt, 1, ignore_eos=True, **submit)
        (token,) = await self.stream.until(handle, 1)
        took = time.perf_counter() - began
        await self.stream.end(handle)
        return took, token, self.stream.started[handle]


async def _measure(case: _Case) -> None:
    times: dict[str, float] = {}
    tokens: dict[int, int] = {}  # the answer to each prompt, by its number
    try:
        await _tiers(case, times)
    except Exception as error:
        case.say(f"tiers failed: {error!r}")
        import traceback

        traceback.print_exc()
    await _pulls(case, times, tokens)
    if "cold" in times:
        shown = ", ".join(f"{name} {1e3 * took:.1f} ms" for name, took in times.items())
        case.note(Row("3", f"TTFT of {PREFIX} + {NEW} tokens", shown))


async def _tiers(case: _Case, times: dict[str, float]) -> None:
    host_bytes = (3 * NEEDED + 64) * case.engine.block_bytes
    disk = {"disk_path": str(case.folder), "disk_bytes": 2 * host_bytes}
    settings = case.settings | {"host_bytes": host_bytes} | disk
    first, second = prompt(100), prompt(101)
    async with serving(case.engine, settings) as (worker, end):
        case.say("the target's worker serves, with tiers")
        assert worker.below is not None
        assert worker.below.store is not None
        await end.ask(prompt(99)[: CHUNK + 20])
        cold, _, _ = await end.ask(first)
        times["cold"] = cold
        case.say(f"cold: {cold:.3f} s")
        took = [(await hit(case, end, first, turn, cached=PREFIX))[0] for turn in range(3)]
        times["device"] = statistics.median(took)
        case.say(f"device: {times['device']:.3f} s")
        began = time.perf_counter()
        await worker.below.settle(15.0)
        saved, spilled = worker.below.writeback.saved, worker.below.spilled
        case.say(
            f"written back within {time.perf_counter() - began:.1f} s more: "
            f"{saved} blocks to the host, {spilled} to the disk, {worker.below.unspilled} not"
        )
        worker.below.store.read_only = True  # what follows is not written: the disk rests
        again, _, _ = await end.ask(second)
        case.say(f"cold, another prompt: {again:.3f} s")
        await end.ask(prompt(102))  # now the first one has left the device
        await worker.below.settle(5.0)
        times["host"], brought = await hit(case, end, first, 9, host=PREFIX)
        case.say(f"host: {times['host']:.3f} s, {brought}")
        await end.ask(second)  # and again
        await end.ask(prompt(102))
        again, brought = await hit(case, end, first, 12, host=PREFIX)
        case.say(f"host, once more: {again:.3f} s, {brought}")
    forget_pages(case.folder)
    async with serving(case.engine, settings | {"host_bytes": 32 * case.engine.block_bytes}) as (worker, end):
        await end.ask(prompt(98)[: CHUNK + 20])  # what computing costs is known now, and bounds the wait
        times["disk"], brought = await hit(case, end, first, 10, disk=PREFIX)
        case.say(f"disk: {times['disk']:.3f} s, {brought}; read until then: {brought['disk']} tokens")


def forget_pages(folder: Path) -> None:
    """What was written is read from the disk again, not from the system's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _pulls(case: _Case, times: dict[str, float], tokens: dict[int, int]) -> None:
    source = await opened(case.source.address)
    answers, prefills = [], []
    for n in range(PULLS):
        took, token, _ = await source.ask(prompt(n))
        answers.append(token)
        prefills.append(took)
    prefill = statistics.median(prefills)
    case.say(f"the source has computed {PULLS} prefixes, {prefill:.3f} s each")
    figures = []
    async with serving(case.engine, case.settings) as (worker, end):
        spans = timed(worker)
        await end.ask(prompt(99)[: CHUNK + 20])
        for n in range(PULLS):
            pull = await pull_of(source, case.source, prompt(n)[:PREFIX])
            took, token, started = await end.ask(prompt(n), pull=pull)
            told = started.pulled
            seconds = spans.last(WHOLE)
            rate = told.bytes / seconds
            figures.append((took, seconds, rate))
            carried = dict(worker.exchange.puller.carried)
            case.say(
                f"pull {n}: TTFT {1e3 * took:.1f} ms, {told.bytes >> 20} MiB in {1e3 * seconds:.1f} ms, "
                f"{rate / 1e9:.1f} GB/s, {started.peer_tokens} tokens, {told.failure or 'whole'}, {carried}"
            )
            case.say(f"of it: {spans.told()}")
            case.say(f"the first token: {token}, where the prefix was computed {answers[n]}")
    took, seconds, rate = (statistics.median(each) for each in zip(*figures[1:], strict=True))
    times["peer"] = took
    case.note(
        Row(
            "3",
            f"pull of {PREFIX} tokens, {WHOLE}",
            f"{rate / 1e9:.1f} GB/s",
            ">= 250 GB/s",
            rate >= LINK,
        )
    )
    times_faster = prefill / seconds
    case.note(Row("3", "over prefilling it", f"{times_faster:.0f}x faster", ">= 40x", times_faster >= FASTER))


def timed(worker: Worker) -> Spans:
    """What a pull spends its time with: the lease, the transfer, and committing what comes meanwhile."""
    spans, runner, puller = Spans(), worker.runner, worker.exchange.puller
    lease, transfer, arrived = puller._lease, puller._transfer, runner.arrived
    began = 0.0

    async def leased(trip: Trip) -> LeaseResponse:
        nonlocal began
        began = time.perf_counter()
        with spans.of("lease"):
            return await lease(trip)

    async def transferred(trip: Trip, response: LeaseResponse) -> None:
        with spans.of("transfer"):
            await transfer(trip, response)

    def committed(arrival: Arrival) -> None:
        with spans.of("commit"):
            arrived(arrival)
        if arrival.over:
            spans.add(WHOLE, time.perf_counter() - began)

    puller._lease, puller._transfer, runner.arrived = leased, transferred, committed  # type: ignore[method-assign]
    lanes = worker.exchange._lanes
    for each in lanes:
        if isinstance(each, DeviceLanes):
            each.open = partial(_opened, each.open, spans)  # type: ignore[assignment]
    return spans


def _opened(open_: Callable[..., Window], spans: Spans, stream: TcpStream, shape: Shape) -> Window:
    return _Timed(open_(stream, shape), spans)


class _Timed:
    """See ``lane.Window``."""

    def __init__(self, window: Window, spans: Spans) -> None:
        self._window = window
        self._spans = spans

    def start(self, slab: int, targets: Sequence[int], seeds: Sequence[int]) -> Landing:
        with self._spans.of("begin to scatter"):
            landing = self._window.start(slab, targets, seeds)
        return self._spans.timed("wait for it", landing)

    def close(self) -> None:
        self._window.close()


def prompt(number: int) -> Prompt:
    return np.array(Random(number).choices(range(SHAPE.vocab_size - 10), k=PREFIX + NEW), np.uint32)


def turn_of(first: Prompt, number: int) -> Prompt:
    """Its prefix with other new tokens."""
    new = Random(1000 + number).choices(range(900), k=NEW)
    return np.concatenate((first[:PREFIX], np.array(new, np.uint32)))


async def ttft_of_hit(engine: TorchEngine, settings: dict[str, Any]) -> float:
    """Median seconds to the first token at a worker that holds the prefix, its client in the same process."""
    async with serving(engine, settings) as (_, end):
        first = prompt(100)
        await end.ask(first)
        answers = [await end.ask(turn_of(first, number)) for number in range(HITS)]
    assert all(started.cached_tokens == PREFIX for _, _, started in answers)
    return statistics.median(took for took, _, _ in answers)


async def hit(case: _Case, end: _End, of: Prompt, turn: int, **wanted: int) -> tuple[float, dict[str, int]]:
    """TTFT of the prefix with other new tokens, and how many tokens came from where; it is told where they
    are fewer than ``wanted``."""
    took, _, started = await end.ask(turn_of(of, turn))
    told = {"cached": started.cached_tokens, "host": started.host_tokens, "disk": started.disk_tokens}
    if any(told[name] < NEARLY * count for name, count in wanted.items()):
        case.say(f"not all was brought: {told}, wanted {wanted}")
        ((name, _),) = wanted.items()
        case.note(Row("3", f"tokens of the prefix from: {name}", f"{told[name]} of {PREFIX}"))
    return took, told


async def pull_of(source: _End, place: Place, token_ids: Prompt) -> Pull:
    status = await source.stub.Status(StatusRequest())
    root = root_hash(status.model_fingerprint, status.block_size)
    hashes = chain(root, packed(token_ids), status.block_size)
    claims = Claims(
        source=place.name,
        target="target",
        epoch=place.epoch,
        root=root,
        keys=keys(hashes),
        expires_s=status.load.clock_s + 10,
    )
    grant = Granter(FLEET_KEY).grant(claims)
    return Pull(source=place.name, address=place.address, tokens=len(token_ids), within_s=5.0, grant=grant)


async def opened(address: str) -> _End:
    stub = WorkerStub(connect(address))  # type: ignore[no-untyped-call]
    stream = Stream(stub, "bar", {})
    stream.patience_s = 30.0
    await stream.open()
    return _End(stub, stream, iter(range(1, 1000)))


@asynccontextmanager
async def serving(engine: TorchEngine, settings: dict[str, Any]):  # type: ignore[no-untyped-def]
    """A new worker around the engine, which remembers nothing of the last one's blocks."""
    worker = Worker(msgspec.convert(settings | {"name": "target"}, Config), engine)
    await worker.start()
    settle()
    end = await opened(worker.grpc_address)
    try:
        yield worker, end
    finally:
        with suppress(Exception):
            await end.stream.close()
        await worker.close()
