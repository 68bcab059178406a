"""A gateway's router where there are several: each request goes to the one that its prompt's root belongs to,
and to the next while that one does not answer.

Routers share nothing but the workers. Who has placed a request hears how it went; what a router that is gone
had booked, the others learn from the workers' reports.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import xxhash
from warmfleet_proto import log
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.limits import KEY_BYTES, TOKEN_BYTES

from warmfleet_router.client import Away, Report, Router
from warmfleet_router.spread import Spread

TRY_S = 0.4  # for one router, while another answers: within a second a second one has answered
BEAT_S = 1.0  # for a heartbeat: others wait for it
ROOT_BYTES = 256 * TOKEN_BYTES  # of a prompt: what belongs together begins alike
GONE = ("joining", "lost")
UNKNOWN = 404  # the status of a model that a router does not know, or does not know yet

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Named(NamedTuple):
    name: str  # HOST:PORT
    router: Router


class SeveralRouters:
    """One Router made of several; ``clock`` is monotonic seconds."""

    books_at_once = False

    def __init__(self, routers: Sequence[Named], clock: Callable[[], float] = time.monotonic) -> None:
        self._routers = list(routers)
        self._clock = clock
        self._spread = Spread([named.name for named in routers])
        self._down: set[int] = set()  # they did not answer; heartbeats ask them again
        self._owners: dict[int, int] = {}  # of bookings that have not ended

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        placement, owner = await self._asked(request, lambda router: router.route(request))
        self._owners[placement.booking] = owner
        return placement

    async def explain(self, request: pb.RouteRequest) -> pb.Explanation:
        explanation, _ = await self._asked(request, lambda router: router.explain(request))
        return explanation

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        owner = self._owners.get(request.booking)
        return pb.ProgressResponse() if owner is None else await self._routers[owner].router.progress(request)

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        owner = self._owners.pop(request.booking, None)
        return pb.FinishResponse() if owner is None else await self._routers[owner].router.finish(request)

    def tell(self, report: Report) -> Coroutine[Any, Any, object]:
        return self.progress(report) if isinstance(report, pb.ProgressRequest) else self.finish(report)

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        """Names to each router the live bookings that are its own. Raises Rejected if none answers."""
        live: list[list[int]] = [[] for _ in self._routers]
        for booking in request.live.bookings:
            if (owner := self._owners.get(booking)) is not None:
                live[owner].append(booking)

        def ask(i: int, router: Router) -> Awaitable[pb.HeartbeatResponse]:
            bookings = pb.LiveBookings(bookings=live[i]) if request.HasField("live") else None
            return router.heartbeat(pb.HeartbeatRequest(gateway_id=request.gateway_id, live=bookings))

        return pb.HeartbeatResponse(bookings=sum(answer.bookings for answer in await self._all(ask)))

    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        """The workers as all routers know them: each as seen by one that is in touch with it. Raises Rejected
        if no router answers."""
        found: dict[str, pb.WorkerView] = {}
        for answer in await self._all(lambda _, router: router.list_workers(request)):
            for worker in answer.workers:
                if worker.address not in found or found[worker.address].state in GONE:
                    found[worker.address] = worker
        return pb.ListWorkersResponse(workers=found.values())

    def answering(self) -> int:
        """How many routers answered when they were last asked."""
        return len(self._routers) - len(self._down)

    async def _asked(self, request: pb.RouteRequest, ask: Callable[[Router], Awaitable[T]]) -> tuple[T, int]:
        """One router after the other, until one takes it; who that was."""
        token_ids = request.token_ids
        refusal: Rejected | BadRequest = Away("no router answers")
        order = self._order(token_ids[:ROOT_BYTES] or request.keys[:KEY_BYTES])
        last = max((i for i in order if i not in self._down), key=order.index, default=order[-1])
        for i in order:
            try:
                async with asyncio.timeout(TRY_S if i != last else None):
                    answer = await ask(self._routers[i].router)
            except TimeoutError:
                self._failed(i, f"no answer within {TRY_S:g} s")
            except Away as error:
                self._failed(i, str(error))
            except Rejected as error:
                refusal = error  # it may know fewer workers than the next one
            except BadRequest as error:
                if error.status != UNKNOWN:
                    raise
                if isinstance(refusal, Away):  # who knows the model, but has no room, says more
                    refusal = error
            else:
                self._answered(i)
                return answer, i
            if token_ids:
                request.token_ids = token_ids  # the one that has failed may have put keys in their place
        raise refusal

    def _order(self, root: bytes) -> list[int]:
        """All routers in the order in which they should be asked. Those that did not answer lately come
        last."""
        number = xxhash.xxh64_intdigest(root)
        up = [i for i in range(len(self._routers)) if i not in self._down]
        first = self._spread.first(number, self._clock(), up)
        return sorted(self._spread.order(number), key=lambda i: (i != first, i in self._down))

    async def _all(self, ask: Callable[[int, Router], Awaitable[T]]) -> list[T]:
        """Answers of those who give one. Raises Rejected if nobody does."""
        asked = (self._one(i, ask(i, named.router)) for i, named in enumerate(self._routers))
        answers = [answer for answer in await asyncio.gather(*asked) if answer is not None]
        if not answers:
            raise Away("no router answers")
        return answers

    async def _one(self, i: int, asked: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(BEAT_S):
                answer = await asked
        except TimeoutError:
            self._failed(i, f"no answer within {BEAT_S:g} s")
        except Rejected as error:
            self._failed(i, str(error))
        else:
            self._answered(i)
            return answer
        return None

    def _failed(self, i: int, why: str) -> None:
        if i not in self._down:
            self._down.add(i)
            name = self._routers[i].name
            log.event(_log, "router_unreachable", level=logging.WARNING, router=name, why=why)

    def _answered(self, i: int) -> None:
        if i in self._down:
            self._down.remove(i)
            log.event(_log, "router_reached", router=self._routers[i].name)
