"""Keeps a RouterCore true to its workers: one task an address, and the clock's tick. Addresses come and go.

Each task asks who the worker is, then follows its presence events from where the cursor stands. A
stream that breaks or falls silent is given up together with its channel: a half-open connection
would hang the next call too.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Self

import grpc
from warmfleet_proto import log, worker_pb2_grpc
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.errors import WarmfleetError, WorkerLost
from warmfleet_proto.tasks import cancelled

from warmfleet_router.core import RouterCore

_log = logging.getLogger(__name__)

TICK_S = 0.1
SWEEP_SLOTS = 1024  # of an index at once
SWEEPS = 100  # a tick
SLICE_S = 0.5e-3  # of taking in events before others get their turn
STATUS_TIMEOUT_S = 2.0
SILENCE_S = 5.0  # a stream without a message for so long is given up
FIRST_WAIT_S = 0.05  # before another attempt; doubles
LONGEST_WAIT_S = 1.0
LONGEST_ASK_WAIT_S = 0.4  # while the worker is there: well under STUCK_AFTER_S


class _Followed(NamedTuple):
    task: asyncio.Task[None]
    settled: asyncio.Event


class Watcher:
    """``async with``: follows the workers that ``watch`` names. ``clock`` is monotonic seconds."""

    def __init__(
        self,
        core: RouterCore,
        clock: Callable[[], float],
        channel: Callable[[str], grpc.aio.Channel] = connect,
    ) -> None:
        self._core = core
        self._clock = clock
        self._channel = channel
        self._ticking: asyncio.Task[None] | None = None
        self._followed: dict[str, _Followed] = {}

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick(), name="router tick")
        return self

    async def watch(self, addresses: Collection[str]) -> None:
        """These, and no others any more: who is not named gets nothing new, what runs there goes on."""
        wanted = frozenset(addresses)
        gone = [address for address in self._followed if address not in wanted]
        await cancelled(*(self._followed.pop(address).task for address in gone))
        for address in gone:
            self._core.roster.remove(address, self._clock())
        for address in addresses:
            if address not in self._followed:
                self._core.roster.add(address)
                settled = asyncio.Event()
                task = asyncio.create_task(self._follow(address, settled), name=f"watch {address}")
                self._followed[address] = _Followed(task, settled)

    async def settled(self, within_s: float) -> None:
        """Waits until each worker has told all that it holds, or is known to be out of reach."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for followed in list(self._followed.values()):
                    await followed.settled.wait()

    async def __aexit__(self, *_: object) -> None:
        assert self._ticking is not None
        await cancelled(self._ticking, *(followed.task for followed in self._followed.values()))
        self._followed.clear()

    async def _tick(self) -> None:
        while True:
            self._core.tick(self._clock())
            for _ in range(SWEEPS):
                if self._core.roster.sweep(SWEEP_SLOTS):
                    break
                await asyncio.sleep(0)
            await asyncio.sleep(TICK_S)

    async def _follow(self, address: str, settled: asyncio.Event) -> None:
        wait, known = FIRST_WAIT_S, ""
        while True:
            try:
                async with self._channel(address) as channel:
                    stub = worker_pb2_grpc.WorkerStub(channel)  # type: ignore[no-untyped-call]
                    status = await stub.Status(pb.StatusRequest(), timeout=STATUS_TIMEOUT_S)
                    self._core.roster.joined(address, status, self._clock())
                    log.event(_log, "worker joined", worker=status.worker, address=address)
                    wait, known = FIRST_WAIT_S, ""
                    await self._watch(address, stub, settled)
            except (grpc.aio.AioRpcError, WarmfleetError) as error:
                if (why := _why(error)) != known:
                    known = why
                    log.event(_log, "worker lost", level=logging.WARNING, address=address, why=why)
            except Exception:
                _log.exception("following %s failed", address)  # ours to mend; the worker is tried again
            finally:
                self._core.roster.broken(address, self._clock())
            settled.set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _watch(self, address: str, stub: Any, settled: asyncio.Event) -> None:
        """Returns only by an error. A stream that shows a gap is replaced by one that fills it."""
        wait = FIRST_WAIT_S
        while True:
            began = self._clock()
            position = self._core.roster.cursor(address).position()
            asked = pb.WatchKvRequest(epoch=position.epoch, after_seq=position.after_seq)
            call = stub.WatchKv(asked)
            try:
                await self._read(address, call, settled)
            finally:
                call.cancel()
            if self._clock() - began > LONGEST_WAIT_S:
                wait = FIRST_WAIT_S
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_ASK_WAIT_S)

    async def _read(self, address: str, call: Any, settled: asyncio.Event) -> None:
        """Reads messages until the cursor asks to watch again. Raises WorkerLost when the stream ends or
        falls silent."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = await call.read()
            except TimeoutError:
                raise WorkerLost(f"no message for {SILENCE_S:g} s") from None
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                raise WorkerLost("the worker ended its presence events")
            if await self._ingest(address, message):
                return
            if self._core.roster.complete(address):
                settled.set()

    async def _ingest(self, address: str, message: pb.WatchKvResponse) -> bool:
        """True when the cursor has asked to watch again."""
        asked = False
        since = self._clock()
        for ask in self._core.roster.ingest(address, message, since):
            asked = asked or ask is not None
            if self._clock() - since > SLICE_S:
                await asyncio.sleep(0)
                since = self._clock()
        return asked


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error)
