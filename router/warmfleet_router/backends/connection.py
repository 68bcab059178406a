"""The one Serve stream between this gateway and a worker: a writer, a reader, and reattachment."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from warmfleet_proto.channel import Tls, connect
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.limits import REATTACH_S
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.tasks import cancelled
from warmfleet_proto.worker_pb2 import (
    Open,
    Output,
    Reattach,
    ServeRequest,
    ServeResponse,
    StatusRequest,
    Submit,
)
from warmfleet_proto.worker_pb2_grpc import WorkerStub

from warmfleet_router.backends.attempt import Attempt
from warmfleet_router.backends.outbox import Outbox

_log = logging.getLogger(__name__)

_RECONNECT_WAIT_S = 0.05
_SILENT_S = 2.0  # on a stream that something waits for, before its worker is asked whether it is there
_ANSWER_S = 5.0  # for that: a worker that is stopped, or out of reach, keeps its connection open
_GONE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
_REFUSALS = 2  # reconnects in a row that fail before a worker counts as dead; a first connect has one try

_Call = grpc.aio.StreamStreamCall[ServeRequest, ServeResponse]


class Connection:
    """One worker's address: connects when something is submitted, and again after every loss."""

    def __init__(self, address: str, gateway_id: str, handles: Iterator[int], tls: Tls | None) -> None:
        self._address = address
        self._gateway_id = gateway_id
        self._handles = handles
        self._tls = tls
        self._live: dict[int, Attempt] = {}
        self._deadlines: dict[int, float] = {}  # on the loop's clock, of live attempts that have one
        self._outbox = Outbox()
        self._unwritten = asyncio.Event()
        self._mend_by = 0.0
        self._heard = False  # anything, of late
        self.connected = False
        self._task = asyncio.create_task(self._run())

    @property
    def idle(self) -> bool:
        """Holds no stream and is asked for none."""
        return not self._live and not self.connected

    def submit(self, submit: Submit, token_ids: bytes, on_overrun: Callable[[], None]) -> Attempt:
        attempt = Attempt(submit, token_ids, self._cancel, on_overrun)
        deadline = self._now() + submit.deadline_s if submit.deadline_s else None
        self._enqueue(attempt, deadline)
        return attempt

    async def close(self) -> None:
        await cancelled(self._task)
        self._lose_all("the gateway is closing")

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _enqueue(self, attempt: Attempt, deadline: float | None) -> None:
        handle = attempt.submit.handle = next(self._handles)
        self._live[handle] = attempt
        if deadline is not None:
            self._deadlines[handle] = deadline
            attempt.submit.deadline_s = max(deadline - self._now(), 0.001)
        self._outbox.submit(attempt.submit, attempt.token_ids)
        self._unwritten.set()

    def _cancel(self, attempt: Attempt) -> None:
        handle = attempt.submit.handle
        if self._live.get(handle) is attempt:
            self._forget(handle)
            self._outbox.cancel(handle)
            self._unwritten.set()

    def _forget(self, handle: int) -> None:
        del self._live[handle]
        self._deadlines.pop(handle, None)

    def _lose_all(self, why: str) -> None:
        """The one place where attempts end because their worker is gone; Generation goes on elsewhere."""
        live, self._live = self._live, {}
        self._deadlines.clear()
        self._outbox.clear()
        for attempt in live.values():
            attempt.fail(WorkerLost(f"worker {self._address}: {why}"))

    async def _run(self) -> None:
        while True:
            while not self._live:
                self._unwritten.clear()
                await self._unwritten.wait()
            try:
                async with connect(self._address, self._tls) as channel:
                    why = await self._serve(WorkerStub(channel))  # type: ignore[no-untyped-call]
                    self._lose_all(why)
            except ConfigError as error:
                self._lose_all(str(error))
            except Exception:
                _log.exception("connection to worker %s failed", self._address)
                self._lose_all("internal error of the gateway")

    async def _serve(self, stub: WorkerStub) -> str:
        """Keeps a stream up while anything waits for it; returns why it was given up."""
        tries = 1
        self._mend_by = self._now() + REATTACH_S
        while True:
            why = await self._stream(stub, stub.Serve())
            tries = _REFUSALS if self.connected else tries - 1
            self.connected = False
            if not self._live or not tries or self._now() > self._mend_by:
                return why
            _log.info("stream to worker %s broke (%s): reattaching", self._address, why)
            await asyncio.sleep(_RECONNECT_WAIT_S)

    async def _stream(self, stub: WorkerStub, call: _Call) -> str:
        """One stream from its Open to its break; returns why it broke. Messages read extend ``_mend_by``."""
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout_at(self._mend_by):
                await call.write(ServeRequest(open=self._open()))
                self.connected = True
                tasks.append(asyncio.create_task(self._write(call)))
                await call.initial_metadata()  # a worker sends it at once; one that is going down never does
            tasks.append(asyncio.create_task(self._guard(stub, call)))
            await self._read(call)
            return "stream ended"
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        except asyncio.InvalidStateError:  # a write after the call had failed: its status says why
            return await call.details() or (await call.code()).name
        except TimeoutError:
            return f"no connection within {REATTACH_S:g} s"
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling():
                raise
            self._mend_by = 0.0  # it would not answer an Open either
            return f"it is silent, and does not answer within {_ANSWER_S:g} s"
        finally:
            call.cancel()
            await cancelled(*tasks)

    def _open(self) -> Open:
        """What is waited for. An attempt without any output yet is submitted again, under a new handle."""
        self._outbox.clear()
        live, self._live = self._live, {}
        opening = Open(gateway_id=self._gateway_id)
        for handle, attempt in live.items():
            if attempt.delivery.started:
                self._live[handle] = attempt
                positions = attempt.delivery.next_positions
                opening.reattach.append(Reattach(handle=handle, next_positions=positions))
            else:
                self._enqueue(attempt, self._deadlines.pop(handle, None))
        return opening

    async def _read(self, call: _Call) -> None:
        heard = False
        try:
            async for response in call:
                self._heard = heard = True
                for output in response.outputs:
                    self._dispatch(output)
        finally:
            if heard:
                self._mend_by = self._now() + REATTACH_S

    async def _guard(self, stub: WorkerStub, call: _Call) -> None:
        """Watches for a stuck worker: if the stream is silent and the worker does not answer Status either,
        the call is cancelled."""
        while True:
            self._heard = False
            await asyncio.sleep(_SILENT_S)
            if self._heard or not self._live:
                continue
            try:
                await stub.Status(StatusRequest(), timeout=_ANSWER_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in _GONE and not self._heard:
                    call.cancel()
                    return
            self._mend_by = self._now() + REATTACH_S

    def _dispatch(self, output: Output) -> None:
        attempt = self._live.get(output.handle)
        if attempt is None or attempt.take(output):
            return  # an unknown one was cancelled here, or is from before a break
        if attempt.delivery.done:
            self._forget(output.handle)
        else:
            self._cancel(attempt)

    async def _write(self, call: Any) -> None:
        while True:
            request = self._outbox.pop()
            if request is not None:
                await call.write(request)
                continue
            self._unwritten.clear()
            await self._unwritten.wait()
