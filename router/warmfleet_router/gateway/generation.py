"""One prompt being completed: placed, submitted, tried elsewhere while nothing has been answered."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, WorkerLost
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.router_pb2 import FinishRequest, Placement, ProgressRequest, RouteRequest
from warmfleet_proto.worker_pb2 import Output, Sampling, Started, Submit

from warmfleet_router.backends.attempt import Attempt, past_deadline
from warmfleet_router.backends.worker import WorkerPool
from warmfleet_router.client import Router
from warmfleet_router.gateway.intake import Tenant
from warmfleet_router.gateway.reports import Reports
from warmfleet_router.gateway.retries import RetryBudget

_MAX_RETRIES = 3
_DEADLINE_GRACE_S = 0.25  # the worker keeps the deadline; a stuck one does not


@dataclass(frozen=True, slots=True)
class Fleet:
    """What every generation of a gateway shares."""

    gateway_id: str
    router: Router
    workers: WorkerPool
    reports: Reports
    budget: RetryBudget
    clock: Callable[[], float]  # monotonic seconds


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be completed. ``token_ids`` is the packed prompt; ``deadline`` is on the fleet's clock."""

    request_id: str
    tenant: Tenant
    model: str
    token_ids: bytes
    sampling: Sampling
    deadline: float

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids) // TOKEN_BYTES

    def route(self, gateway_id: str, tried: Sequence[str] = ()) -> RouteRequest:
        """What the router is asked; ``tried`` workers have failed or refused it."""
        return RouteRequest(
            request_id=self.request_id,
            gateway_id=gateway_id,
            model=self.model,
            tenant=self.tenant.name,
            salt=self.tenant.salt,
            token_ids=self.token_ids,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.sampling.max_tokens,
            choices=self.sampling.choices,
            exclude=tried,
            bypass_cache=self.sampling.HasField("prompt_logprobs"),
        )


class Generation:
    """``start`` waits for the first outputs, iterating yields them and the rest, ``finish`` ends it."""

    def __init__(self, fleet: Fleet, wanted: Wanted, on_overrun: Callable[[], None]) -> None:
        self.wanted = wanted
        self.placement = Placement()
        self.cached_tokens = 0
        self.brought: Counter[str] = Counter()  # of those, by where they were fetched from
        self.queue_s = 0.0
        self.placing_s = 0.0
        self.tried: list[str] = []  # workers that failed or refused it
        self._fleet = fleet
        self._on_overrun = on_overrun
        self._attempt: Attempt | None = None
        self._first: list[Output] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = fleet.clock()

    async def start(self) -> None:
        """Raises BadRequest, Rejected or WorkerLost when no worker takes it."""
        while True:
            await self._place()
            try:
                await self._submit()
                return
            except (Rejected, WorkerLost) as error:
                self.finish(error)
                self.tried.append(self.placement.worker)
                if not self._may_retry():
                    raise
            except BaseException as error:
                self.finish(error)
                raise

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[Output]:
        """Outputs since the last look; raises as Attempt does."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        assert self._attempt is not None
        return await anext(self._attempt)

    def finish(self, error: BaseException | None = None, completion_tokens: int = 0) -> None:
        """Once for every start, when the client has its answer or will never have it; repeats do nothing."""
        if self._attempt is None:
            return
        self._attempt.cancel()
        self._attempt = None
        if self._timer is not None:
            self._timer.cancel()
        report = FinishRequest(
            booking=self.placement.booking,
            outcome=_outcome(error),
            completion_tokens=completion_tokens,
            cached_tokens=self.cached_tokens,
            e2e_s=self._fleet.clock() - self._began,
            reason="" if error is None else type(error).__name__,
        )
        self._fleet.reports.finish(report)

    async def _place(self) -> None:
        request = self.wanted.route(self._fleet.gateway_id, self.tried)
        asked = self._fleet.clock()
        self.placement = await self._booked(request)
        self._fleet.reports.booked(self.placement.booking)
        self.placing_s = self._fleet.clock() - asked

    async def _booked(self, request: RouteRequest) -> Placement:
        """A client that leaves meanwhile leaves no booking behind."""
        asking = asyncio.ensure_future(self._fleet.router.route(request))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._unbook)
            raise

    def _unbook(self, asking: asyncio.Future[Placement]) -> None:
        if not asking.cancelled() and asking.exception() is None:
            ignored = FinishRequest(booking=asking.result().booking, outcome=FinishRequest.IGNORE)
            self._fleet.reports.finish(ignored)

    async def _submit(self) -> None:
        wanted, now = self.wanted, self._fleet.clock()
        submit = Submit(
            request_id=wanted.request_id,
            attempt=len(self.tried),
            booking=self.placement.booking,
            prompt_tokens=wanted.prompt_tokens,
            salt=wanted.tenant.salt,
            sampling=wanted.sampling,
            deadline_s=max(wanted.deadline - now, 0.001),
            pull=self.placement.pull if self.placement.HasField("pull") else None,
        )
        self._attempt = self._fleet.workers.submit(
            self.placement.address, submit, wanted.token_ids, self._on_overrun
        )
        self._timer = asyncio.get_running_loop().call_later(
            wanted.deadline - now + _DEADLINE_GRACE_S, self._attempt.cancel, past_deadline()
        )
        self._first = await anext(self._attempt)
        started = self._first[0].started
        self.cached_tokens = started.cached_tokens
        self.brought = Counter(host=started.host_tokens, disk=started.disk_tokens, peer=started.peer_tokens)
        self.queue_s = started.queue_s
        self._fleet.reports.progress(
            _progress(self.placement.booking, started, ttft_s=self._fleet.clock() - now)
        )

    def _may_retry(self) -> bool:
        now = self._fleet.clock()
        return now < self.wanted.deadline and len(self.tried) <= _MAX_RETRIES and self._fleet.budget.take(now)


def _progress(booking: int, started: Started, ttft_s: float) -> ProgressRequest:
    return ProgressRequest(
        booking=booking,
        cached_tokens=started.cached_tokens,
        queue_s=started.queue_s,
        prefill_s=started.prefill_s,
        ttft_s=ttft_s,
        pulled_tokens=started.pulled.tokens,
        pull_s=started.pulled.seconds,
        pulled_bytes=started.pulled.bytes,
        wasted_bytes=started.pulled.wasted_bytes,
        pull_failure=started.pulled.failure,
        loaded_bytes=started.loaded_bytes,
        load_s=started.load_s,
    )


def _outcome(error: BaseException | None) -> FinishRequest.Outcome:
    """Only a worker that is lost speaks against it: not a full queue, a bad request or a client that left."""
    if error is None:
        return FinishRequest.OK
    failed = isinstance(error, WarmfleetError) and not isinstance(error, BadRequest | Rejected)
    return FinishRequest.DROPPED if failed else FinishRequest.IGNORE
