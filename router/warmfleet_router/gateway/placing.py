"""A request placed on a worker, and on another one for as long as nothing has been answered."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from warmfleet_proto import log
from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, WorkerLost
from warmfleet_proto.router_pb2 import FinishRequest, Placement, RouteRequest

from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import Router
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget

_log = logging.getLogger(__name__)

_MAX_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Upstream:
    """What every placed request of a gateway shares: the router and the workers behind it, and how they are
    told of what becomes of requests."""

    gateway_id: str
    router: Router
    workers: WorkerPool
    reports: Reports
    budget: RetryBudget
    clock: Callable[[], float]  # monotonic seconds
    stale: asyncio.Event = field(default_factory=asyncio.Event)  # somebody has come of whom nothing is known


class Placed:
    """A request from its placement to its end, whoever serves it: see Generation, Relay, Either.

    ``start`` asks the router for a worker, sends the request there and waits for the first of the answer; a
    worker that fails or refuses before that is replaced by another one. ``finish`` tells the router how it
    ended. ``deadline`` is on the upstream's clock.
    """

    def __init__(self, upstream: Upstream, deadline: float) -> None:
        self.placement = Placement()
        self.cached_tokens = 0
        self.brought: Counter[str] = Counter()  # of those, by where they were fetched from
        self.queue_s = 0.0
        self.placing_s = 0.0
        self.tried: list[str] = []  # workers that failed or refused it
        self._upstream = upstream
        self._deadline = deadline
        self._booked = False
        self._began = upstream.clock()

    @property
    def prompt_tokens(self) -> int:
        raise NotImplementedError

    def _route(self) -> RouteRequest:
        """What the router is asked."""
        raise NotImplementedError

    async def _submit(self) -> None:
        """Sends it to the worker of ``placement`` and waits for the first of the answer."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Gives up what the worker is doing for this request, if anything."""
        raise NotImplementedError

    def _told(self, report: FinishRequest) -> None:
        """Adds what this kind of request knows of its answer to the report."""

    async def start(self, failed: Rejected | WorkerLost | None = None) -> None:
        """``failed``: how it ended where it had begun.

        Raises BadRequest, Rejected or WorkerLost when no worker takes it.
        """
        try:
            while True:
                if failed is not None:
                    self._failed(failed)
                await self._place_after(failed)
                try:
                    await self._submit()
                    return
                except (Rejected, WorkerLost) as error:
                    failed = error
                except BaseException as error:
                    self.finish(error)
                    raise
        finally:
            failed = None  # its traceback holds this frame

    def _failed(self, error: Rejected | WorkerLost) -> None:
        """Raises it where nobody else is to be asked."""
        self.finish(error)
        worker = self.placement.worker
        log.event(_log, "attempt failed", level=logging.WARNING, worker=worker, why=str(error))
        self.tried.append(worker)
        if not self._may_retry(isinstance(error, WorkerLost)):
            raise error

    async def submit_for(self, other: "Placed") -> None:
        """Submits what the other one has placed; that one goes on to answer for it."""
        self.placement, self.tried = other.placement, other.tried
        await self._submit()

    def take_over(self, other: "Placed") -> None:
        """Answers from now on for what the other one has placed and started."""
        self.placing_s, self._began = other.placing_s, other._began
        self._booked, other._booked = other._booked, False

    def finish(self, error: BaseException | None = None, completion_tokens: int = 0) -> None:
        """Once for every start, when the client has its answer or will never have it; repeats do nothing."""
        if not self._booked:
            return
        self._booked = False
        self._let_go()
        report = FinishRequest(
            booking=self.placement.booking,
            outcome=_outcome(error),
            completion_tokens=completion_tokens,
            cached_tokens=self.cached_tokens,
            e2e_s=self._upstream.clock() - self._began,
            reason="" if error is None else type(error).__name__,
        )
        self._told(report)
        self._upstream.reports.finish(report)

    async def _place_after(self, failed: Rejected | WorkerLost | None) -> None:
        """Places it. If no worker is left, raises how the last one ``failed`` rather than that none is left:
        a server's 429 and its Retry-After are for the client, and a model that has gone with its worker is no
        mistake of the client's. Raises BadRequest and Rejected, too."""
        try:
            await self._place()
        except (BadRequest, Rejected):
            if failed is None:
                raise
            raise failed from None

    async def _place(self) -> None:
        asked = self._upstream.clock()
        self.placement = await self._asked(self._route())
        self._upstream.reports.booked(self.placement.booking)
        self._booked = True
        self.placing_s = self._upstream.clock() - asked

    async def _asked(self, request: RouteRequest) -> Placement:
        """The router's answer. If the client leaves meanwhile, the booking that is made still ends."""
        if self._upstream.router.books_at_once:
            return await self._upstream.router.route(request)  # a task for it takes a third as long again
        asking = asyncio.ensure_future(self._upstream.router.route(request))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._unbook)
            raise

    def _unbook(self, asking: asyncio.Future[Placement]) -> None:
        if not asking.cancelled() and asking.exception() is None:
            ignored = FinishRequest(booking=asking.result().booking, outcome=FinishRequest.IGNORE)
            self._upstream.reports.finish(ignored)

    def _may_retry(self, lost: bool) -> bool:
        now, budget = self._upstream.clock(), self._upstream.budget
        return now < self._deadline and len(self.tried) <= _MAX_RETRIES and budget.take(now, lost)


def is_server(address: str) -> bool:
    """Other servers go by URLs, our own workers by HOST:PORT."""
    return "://" in address


def _outcome(error: BaseException | None) -> FinishRequest.Outcome:
    """DROPPED counts against the worker. It is for workers that were lost, not for a full queue, a bad
    request or a client that left."""
    if error is None:
        return FinishRequest.OK
    failed = isinstance(error, WarmfleetError) and not isinstance(error, BadRequest | Rejected)
    return FinishRequest.DROPPED if failed else FinishRequest.IGNORE
