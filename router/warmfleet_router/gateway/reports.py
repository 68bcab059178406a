"""What the router hears of a booking: progress once, then finish once, never in the request's way."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from warmfleet_proto import log
from warmfleet_proto.errors import WarmfleetError
from warmfleet_proto.router_pb2 import FinishRequest, LiveBookings, ProgressRequest

from warmfleet_router.client import Report, Router

Sending = Coroutine[Any, Any, object]
_log = logging.getLogger(__name__)


class Reports:
    """Sends in the background where the router is elsewhere; reports of one booking arrive in order."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._latest: dict[int, asyncio.Task[None]] = {}
        self._live: set[int] = set()

    @property
    def live(self) -> LiveBookings:
        """Bookings whose end has not been told yet."""
        return LiveBookings(bookings=self._live)

    def booked(self, booking: int) -> None:
        self._live.add(booking)

    def progress(self, report: ProgressRequest) -> None:
        if waits := self._told(report):
            self._send(report.booking, waits)

    def finish(self, report: FinishRequest) -> None:
        if waits := self._told(report):
            self._send(report.booking, self._finished(report.booking, waits))
        else:
            self._live.discard(report.booking)

    def _told(self, report: Report) -> Sending | None:
        try:
            return self._router.tell(report)
        except WarmfleetError as error:
            _lost(error)
            return None

    def _send(self, booking: int, call: Sending) -> None:
        task = asyncio.create_task(self._after(self._latest.get(booking), call))
        self._latest[booking] = task
        task.add_done_callback(lambda done: self._forget(booking, done))

    async def _finished(self, booking: int, call: Sending) -> None:
        try:
            await call
        finally:
            self._live.discard(booking)

    async def _after(self, before: asyncio.Task[None] | None, call: Sending) -> None:
        if before is not None:
            await before
        try:
            await call
        except WarmfleetError as error:
            _lost(error)

    def _forget(self, booking: int, task: asyncio.Task[None]) -> None:
        if self._latest.get(booking) is task:
            del self._latest[booking]

    async def close(self) -> None:
        """Waits until everything is said."""
        await asyncio.gather(*self._latest.values())


def _lost(error: WarmfleetError) -> None:
    """The next heartbeat does not name the booking any more: that ends it."""
    log.event(_log, "report_lost", level=logging.WARNING, why=str(error))
