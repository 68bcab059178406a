"""WatchKv: presence and load for one router, by replay from where it stands or from a snapshot.

The stream holds a position in the presence log and no queue of its own: a router that reads slowly falls
behind in the log, and gets a snapshot when it is too far behind.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from warmfleet_proto.limits import HEARTBEAT_S, WATCH_BACKLOG_MESSAGES
from warmfleet_proto.worker_pb2 import KvBatch, KvSnapshot, WatchKvRequest, WatchKvResponse, WorkerLoad

from warmfleet_worker import wire
from warmfleet_worker.runner import Runner

_SILENCE_S = 0.8 * HEARTBEAT_S  # leaves time for the message to arrive
_MOST_UNNAMED = 65_536  # bookings: minutes of them, for a router that does not read


class Watch:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._change = asyncio.Event()
        self._unnamed = runner.bookings
        self._behind = False  # there were too many to be remembered: a snapshot names those that live

    def changed(self) -> None:
        self._change.set()

    def booked(self, booking: int) -> None:
        if len(self._unnamed) < _MOST_UNNAMED:
            self._unnamed.append(booking)
        else:
            self._behind = True

    async def messages(self, request: WatchKvRequest) -> AsyncGenerator[WatchKvResponse, None]:
        """Presence and load from the asked position on, until the worker closes."""
        log = self._runner.presence
        seq = request.after_seq if request.epoch == log.epoch else -1
        self._runner.listeners.add(self)
        try:
            while not self._runner.closing:
                self._change.clear()
                batches = None if self._behind else log.since(seq)
                if batches is None or len(batches) > WATCH_BACKLOG_MESSAGES:
                    seq = log.seq
                    for part in wire.snapshot(log.snapshot()):
                        if part.last:
                            self._unnamed, self._behind = self._runner.bookings, False
                        yield self._message(snapshot=part)
                    continue
                seq += len(batches)
                for batch in batches:
                    yield self._message(batch=wire.batch(batch))
                if not batches:
                    yield self._message()
                await self._wait()
        finally:
            self._runner.listeners.discard(self)

    def _message(self, batch: KvBatch | None = None, snapshot: KvSnapshot | None = None) -> WatchKvResponse:
        """Names every booking that no message has named yet; a snapshot's last part names all."""
        bookings: Sequence[int] = ()
        if snapshot is None or snapshot.last:
            bookings, self._unnamed = self._unnamed, []
        epoch, load = self._runner.presence.epoch, load_of(self._runner, bookings)
        return WatchKvResponse(epoch=epoch, load=load, batch=batch, snapshot=snapshot)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SILENCE_S):
                await self._change.wait()


def load_of(runner: Runner, bookings: Sequence[int] = ()) -> WorkerLoad:
    scheduler = runner.scheduler
    return wire.load(
        scheduler.load(),
        scheduler.totals,
        bookings=bookings,
        step_age_s=runner.step_age_s,
        draining=scheduler.draining,
        clock_s=runner.now(),
        leaves_s=max(runner.leaves_at - runner.now(), 0.0) if scheduler.draining else 0.0,
    )
