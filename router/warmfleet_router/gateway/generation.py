"""One prompt being completed by one of our own workers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from warmfleet_proto.errors import Rejected, WorkerLost
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.router_pb2 import FinishRequest, ProgressRequest, RouteRequest
from warmfleet_proto.worker_pb2 import Output, Sampling, Started, Submit

from warmfleet_router.backends.attempt import Attempt, past_deadline
from warmfleet_router.gateway.intake import Tenant
from warmfleet_router.gateway.placing import Placed, Upstream, is_server

_DEADLINE_GRACE_S = 0.25  # the worker keeps the deadline; a stuck one does not


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to be completed. ``token_ids`` are packed; ``deadline`` is on the upstream's clock."""

    request_id: str
    tenant: Tenant
    model: str
    token_ids: bytes
    sampling: Sampling
    deadline: float

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids) // TOKEN_BYTES

    def after(self, drawn: bytes) -> "GenerationRequest":
        """What is left of it once its one choice has the tokens ``drawn`` (packed)."""
        sampling, count = Sampling(), len(drawn) // TOKEN_BYTES
        sampling.CopyFrom(self.sampling)
        sampling.max_tokens = max(sampling.max_tokens - count, 0)  # a worker may be wrong, and say more
        sampling.drawn = count
        sampling.ClearField("prompt_logprobs")  # they came with the first of it
        return replace(self, token_ids=self.token_ids + drawn, sampling=sampling)

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


class Generation(Placed):
    """One prompt's completion. ``start`` waits for the first outputs, iterating yields them and the rest.

    Where the worker is lost, the answer goes on at another one, from its prompt and the tokens that have
    come: no token is lost or comes twice. Not so with several choices, which have parted by then.

    ``on_overrun`` is called when the client reads so slowly that outputs pile up.
    """

    def __init__(self, upstream: Upstream, wanted: GenerationRequest, on_overrun: Callable[[], None]) -> None:
        super().__init__(upstream, wanted.deadline)
        self.wanted = wanted
        self.others: Sequence[str] = ()  # servers that have the model, too: they cannot go on with an answer
        self._rest = wanted
        self._drawn = bytearray()
        self._on_overrun = on_overrun
        self._attempt: Attempt | None = None
        self._first: list[Output] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.wanted.prompt_tokens

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[Output]:
        """Outputs since the last look; raises as Attempt does."""
        while self._first is None:
            assert self._attempt is not None
            try:
                return self._kept(await anext(self._attempt))
            except WorkerLost as lost:
                if self.wanted.sampling.choices > 1:
                    raise
                self._rest = self.wanted.after(bytes(self._drawn))
                await self.start(lost)
        first, self._first = self._first, None
        return self._kept(first)

    def _kept(self, outputs: list[Output]) -> list[Output]:
        for output in outputs:
            self._drawn += output.token_ids
        return outputs

    def _route(self) -> RouteRequest:
        return self._rest.route(self._upstream.gateway_id, (*self.tried, *self.others))

    def _told(self, report: FinishRequest) -> None:
        """Tokens that have come before are not this booking's."""
        report.completion_tokens = max(report.completion_tokens - self._rest.sampling.drawn, 0)

    def _let_go(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        if self._timer is not None:
            self._timer.cancel()

    async def _submit(self) -> None:
        if is_server(self.placement.address):  # it has joined since the last look at who serves the model
            self._upstream.stale.set()
            raise Rejected("a server that is not ours")
        wanted, now = self._rest, self._upstream.clock()
        submit = Submit(
            request_id=wanted.request_id,
            booking=self.placement.booking,
            prompt_tokens=wanted.prompt_tokens,
            salt=wanted.tenant.salt,
            sampling=wanted.sampling,
            deadline_s=max(wanted.deadline - now, 0.001),
            pull=self.placement.pull if self.placement.HasField("pull") else None,
        )
        self._attempt = self._upstream.workers.submit(
            self.placement.address, submit, wanted.token_ids, self._on_overrun
        )
        self._timer = asyncio.get_running_loop().call_later(
            wanted.deadline - now + _DEADLINE_GRACE_S, self._attempt.cancel, past_deadline()
        )
        self._first = await anext(self._attempt)
        started = self._first[0].started
        if not self._drawn:
            self._began_at(started)
        self._upstream.reports.progress(
            _progress(self.placement.booking, started, ttft_s=self._upstream.clock() - now)
        )

    def _began_at(self, started: Started) -> None:
        self.cached_tokens = started.cached_tokens
        self.brought = Counter(host=started.host_tokens, disk=started.disk_tokens, peer=started.peer_tokens)
        self.queue_s = started.queue_s


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
        work_s=started.work_s,
    )
