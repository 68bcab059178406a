"""What is remembered of one request: its metrics, and its one line in the log. Never prompt text."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from warmfleet_proto import log
from warmfleet_proto.errors import BadRequest, Rejected, WorkerLost

from warmfleet_router.gateway import intake
from warmfleet_router.gateway.fields import ChatBody, CompletionBody
from warmfleet_router.gateway.placing import Placed, Upstream
from warmfleet_router.metrics import Metrics, Outcome

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIELDS = intake.HEADERS.union(ChatBody.__struct_fields__, CompletionBody.__struct_fields__)


class Asked(Protocol):
    """What was asked for, as far as it is remembered."""

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool: ...
    @property
    def choices(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...


class Record:
    """Times are seconds on the clock that ``began`` is from."""

    def __init__(self, metrics: Metrics, request_id: str, began: float) -> None:
        self.request_id = request_id
        self.tenant = ""
        self.job: Asked | None = None
        self.generations: Sequence[Placed] = ()
        self.completion_tokens = 0
        self._counted = 0  # of those, in the metrics
        self._metrics = metrics
        self._began = began
        self._prepared_at = began
        self._first_at: float | None = None
        self._latest = began
        metrics.arrived()

    def prepared(self, job: Asked, now: float) -> None:
        self.job = job
        self._prepared_at = now

    def placed(self) -> None:
        """Every prompt has its worker, and the first of them has answered."""
        prepare_s = self._prepared_at - self._began
        for generation in self.generations:
            self._metrics.placed(generation.prompt_tokens, prepare_s, generation.placing_s)

    def tokens(self, count: int, now: float) -> None:
        """``count`` tokens have just gone to the client."""
        self._counted += count
        self._went(count, count, now)

    def events(self, count: int, now: float) -> None:
        """``count`` events of a server have. Of how many tokens it says at the end, if at all: they are
        counted then."""
        self._went(count, 0, now)

    def _went(self, count: int, counted: int, now: float) -> None:
        self.completion_tokens += count
        if self._first_at is None:
            self._first_at = now
            self._metrics.first_token(now - self._began)
            self._metrics.tokens(counted)
        elif count:
            self._metrics.tokens(counted, now - self._latest)
        self._latest = now

    def ended(self, error: BaseException | None, now: float) -> None:
        outcome = _outcome(error)
        e2e_s = now - self._began
        self._metrics.ended(outcome, e2e_s)
        self._metrics.tokens(self.completion_tokens - self._counted)
        fields: dict[str, Any] = {"request_id": self.request_id, "tenant": self.tenant, "ending": outcome}
        if isinstance(error, BadRequest):
            fields["field"] = _known(error.field)
        elif error is not None:
            fields["why"] = str(error) or type(error).__name__
        if self.job is not None:
            fields |= {"model": self.job.model, "stream": self.job.stream}
            fields |= {"choices": self.job.choices, "prompt_tokens": self.job.prompt_tokens}
            fields |= {"completion_tokens": self.completion_tokens}
        if self.generations:
            fields |= _placement(self.generations)
        if self._first_at is not None:
            fields["ttft_s"] = _rounded(self._first_at - self._began)
        log.event(_log, "request", **fields, e2e_s=_rounded(e2e_s))


async def carried_out(
    upstream: Upstream,
    record: Record,
    asked: Asked,
    placed: Sequence[Placed],
    answering: Awaitable[tuple[T, Exception | None]],
) -> tuple[T, Exception | None]:
    """Awaits ``answering``: the response, and what ended it early if its stream had begun. However that turns
    out, all of ``placed`` are finished then: of several prompts the one that failed has ended with that, and
    says nothing of the others' workers."""
    now, budget = upstream.clock(), upstream.budget
    record.prepared(asked, now)
    budget.request(now)
    budget.under_way += len(placed)
    failure: BaseException | None = None
    try:
        response, failure = await answering
        return response, failure
    except BaseException as error:
        failure = error
        raise
    finally:
        given_up = failure is not None and len(placed) > 1
        for each in placed:
            each.finish(asyncio.CancelledError() if given_up else failure)
        budget.under_way -= len(placed)
        failure = None  # its traceback holds this frame, and with it the whole body


def _known(field: str | None) -> str:
    """The field of a request that the path ``field`` begins with; a wrong key in it is the client's text."""
    head = re.split(r"[.\[]", field or "", maxsplit=1)[0]
    return head if head in _FIELDS else "body"


def _placement(generations: Sequence[Placed]) -> dict[str, Any]:
    """Where the first prompt was placed last and why, and sums over all prompts: of what they overlap with,
    not of what an answer that went on elsewhere has added to them."""
    first, placement = generations[0], generations[0].placement
    return {
        "worker": placement.worker,
        "policy": placement.policy,
        "reason": placement.reason,
        "price_s": _rounded(placement.price_s),
        "terms": {term.name: _rounded(term.seconds) for term in placement.terms},
        "overlap_available": sum(min(g.placement.available_tokens, g.prompt_tokens) for g in generations),
        "overlap_expected": sum(min(g.placement.expected_tokens, g.prompt_tokens) for g in generations),
        "overlap_delivered": sum(g.cached_tokens for g in generations),
        "brought": dict(sum((g.brought for g in generations), Counter())),
        "retries": sum(len(g.tried) for g in generations),
        "queue_s": _rounded(first.queue_s),
    }


def _outcome(error: BaseException | None) -> Outcome:
    match error:
        case None:
            return "ok"
        case BadRequest():
            return "bad_request"
        case Rejected():
            return "rejected"
        case WorkerLost():
            return "lost"
        case asyncio.CancelledError() | ConnectionError():
            return "cancelled"
        case _:
            return "failed"


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
