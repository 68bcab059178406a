"""One submit to one worker, as the gateway sees it: batches of outputs, then an end or an error."""

import asyncio
from collections.abc import Callable

from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError, WorkerLost
from warmfleet_proto.limits import STREAM_BACKLOG_BYTES
from warmfleet_proto.worker_pb2 import Ending, Output, Submit

from warmfleet_router.backends.delivery import Delivery

_FRAMING_BYTES = 256  # what an SSE event adds to an output's own size


class Attempt:
    """Iterates over lists of Outputs: all that has arrived since the last look.

    Every choice yields positions 0..n-1 once and then one Ending (STOP or LENGTH). Any other ending
    ends all of the attempt with BadRequest, Rejected (504: its deadline has passed) or WorkerLost.
    """

    def __init__(
        self,
        submit: Submit,
        token_ids: bytes,
        on_cancel: Callable[["Attempt"], None],
        on_overrun: Callable[[], None],
    ) -> None:
        self.submit = submit
        self.token_ids = token_ids
        self.delivery = Delivery(max(submit.sampling.choices, 1))
        self._on_cancel = on_cancel
        self._on_overrun = on_overrun
        self._outputs: list[Output] = []
        self._backlog = 0  # bytes
        self._error: WarmfleetError | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Attempt":
        return self

    async def __anext__(self) -> list[Output]:
        while not self._closed and not self._outputs:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._outputs:
            outputs, self._outputs, self._backlog = self._outputs, [], 0
            return outputs
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def cancel(self, error: WarmfleetError | None = None) -> None:
        """The worker stops within a step; iterating ends, or raises ``error``. Nothing after the end."""
        if not self._closed:
            self._on_cancel(self)
            self._error = error
            self._close()

    def take(self, output: Output) -> bool:
        """Called by the connection with each output. Returns whether the attempt wants more."""
        try:
            fresh = self.delivery.accept(output)
            if fresh is None:
                return True
            _raise_failure(fresh)
        except WarmfleetError as error:
            self.fail(error)
            return False
        if self._backlog > STREAM_BACKLOG_BYTES:
            self.fail(BadRequest("cancelled: the client stopped reading", status=408))
            self._on_overrun()
            return False
        self._outputs.append(fresh)
        self._backlog += _FRAMING_BYTES + fresh.ByteSize()
        if self.delivery.done:
            self._close()
        else:
            self._wake()
        return not self._closed

    def fail(self, error: WarmfleetError) -> None:
        """Called by the connection: the attempt ends with ``error``, after what has arrived."""
        if not self._closed:
            self._error = error
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _raise_failure(output: Output) -> None:
    """Raises the error that an Ending stands for; STOP and LENGTH are ordinary ends."""
    if not output.HasField("ending"):
        return
    ending = output.ending
    match ending.reason:
        case Ending.STOP | Ending.LENGTH:
            return
        case Ending.DEADLINE:
            raise past_deadline()
        case Ending.BAD_REQUEST:
            raise BadRequest(ending.message)
        case Ending.REJECTED:
            raise Rejected(ending.message)
        case reason:
            raise WorkerLost(ending.message or f"worker ended the request: {Ending.Reason.Name(reason)}")


def past_deadline() -> Rejected:
    return Rejected("the request's deadline has passed", status=504)
