"""What the router hears of a booking: progress once, then finish once, never in the request's way."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from warmfleet_proto import log
from warmfleet_proto.errors import WarmfleetError
from warmfleet_proto.router_pb2 import FinishRequest, LiveBookings, ProgressRequest

from warmfleet_router.client import Router

_log = logging.getLogger(__name__)


class Reports:
    """Sends in the background; reports of one booking arrive in order."""

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
        self._send(report.booking, self._router.progress(report))

    def finish(self, report: FinishRequest) -> None:
        self._send(report.booking, self._finish(report))

    def _send(self, booking: int, call: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(self._after(self._latest.get(booking), call))
        self._latest[booking] = task
        task.add_done_callback(lambda done: self._forget(booking, done))

    async def _finish(self, report: FinishRequest) -> None:
        try:
            await self._router.finish(report)
        finally:
            self._live.discard(report.booking)

    async def _after(self, before: asyncio.Task[None] | None, call: Coroutine[Any, Any, Any]) -> None:
        if before is not None:
            await before
        try:
            await call
        except WarmfleetError as error:
            # The next heartbeat does not name the booking any more: that ends it.
            log.event(_log, "report_lost", level=logging.WARNING, why=str(error))

    def _forget(self, booking: int, task: asyncio.Task[None]) -> None:
        if self._latest.get(booking) is task:
            del self._latest[booking]

    async def close(self) -> None:
        """Waits until everything is said."""
        await asyncio.gather(*self._latest.values())
