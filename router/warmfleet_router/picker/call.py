"""The gRPC calls that the picker answers: Envoy's Process, the standard health check, reflection."""

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from warmfleet_router.picker import replies
from warmfleet_router.picker.exchange import Exchange, Picking
from warmfleet_router.picker.http2 import Stream

_log = logging.getLogger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
# Older clients know the first; in both the messages are the same.
REFLECTIONS = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
OK, UNKNOWN, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 2, 5, 8, 12, 13

_MOST_WAITING = 64  # messages behind a body that is being placed; Envoy waits for the answer
_PREFIX = struct.Struct("!BI")  # compressed or not, size


def _literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK has it without any table."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


_HEAD = b"\x88" + _literal(b"content-type", b"application/grpc")  # :status 200


class Call:
    """Whole messages go to ``_message``; one that breaks gRPC's framing ends the call."""

    def __init__(self, stream: Stream, most: int) -> None:
        self._stream = stream
        self._most = most  # bytes of a message
        self._heard = bytearray()  # that is no whole message yet
        self._begun = False
        self._over = False

    def data(self, part: bytes) -> None:
        heard = self._heard
        heard += part
        while len(heard) >= _PREFIX.size and not self._over:
            packed, size = _PREFIX.unpack_from(heard)
            end = _PREFIX.size + size
            if packed or size > self._most:
                self._end(UNIMPLEMENTED if packed else RESOURCE_EXHAUSTED)
            elif len(heard) < end:
                return
            else:
                message = bytes(memoryview(heard)[_PREFIX.size : end])
                del heard[:end]
                try:
                    self._message(message)
                except DecodeError:
                    self._end(INTERNAL)
        if self._over:
            heard.clear()  # whatever else comes before the peer knows

    def done(self) -> None:
        self._end(OK)

    def gone(self) -> None:
        self._over = True

    def settle(self) -> None:
        """The picker is about to go. Whoever has asked waits for an answer, so nothing is ended here."""

    def _message(self, data: bytes) -> None:
        """Raises DecodeError."""
        raise NotImplementedError

    def _say(self, message: bytes) -> None:
        self._head()
        self._stream.say(_PREFIX.pack(0, len(message)) + message)

    def _end(self, status: int, error: Exception | None = None) -> None:
        """``error``: what went wrong here."""
        if not self._over:
            self._over = True
            self._head()
            self._stream.end(_literal(b"grpc-status", b"%d" % status))

    def _head(self) -> None:
        if not self._begun:
            self._begun = True
            self._stream.head(_HEAD)


class Process(Call):
    """One HTTP request of Envoy's; however it ends, ``exchange`` hears of it."""

    def __init__(self, stream: Stream, most: int, exchange: Exchange) -> None:
        super().__init__(stream, most)
        self._exchange = exchange
        self._picking: asyncio.Task[None] | None = None
        self._unread: bytes | None = None  # a message that has its answer
        self._waiting: deque[bytes] = deque()
        self._heard_all = False

    def done(self) -> None:
        self._heard_all = True
        if self._picking is None:
            self._end(OK)

    def gone(self) -> None:
        super().gone()
        self._let_go()

    def settle(self) -> None:
        """Envoy's request has its endpoint: without a picker it goes on, whatever Envoy needs one for."""
        if self._exchange.picked and self._exchange.settle():
            self._end(OK)

    def _end(self, status: int, error: Exception | None = None) -> None:
        self._let_go(error)
        super()._end(status)

    def _let_go(self, error: Exception | None = None) -> None:
        self._read()
        self._exchange.ended(error)
        self._waiting.clear()
        if self._picking is not None:
            self._picking.cancel()

    def _message(self, data: bytes) -> None:
        if self._picking is None:
            self._take(data)
        elif len(self._waiting) < _MOST_WAITING and sum(map(len, self._waiting)) + len(data) <= self._most:
            self._waiting.append(data)
        else:
            self._end(RESOURCE_EXHAUSTED)

    def _take(self, data: bytes) -> None:
        self._read()
        answer = replies.foreseen(data, self._exchange.keys, self._exchange.timed)
        if answer is not None:  # Envoy goes on while the message is read
            self._answer((answer,))
            self._unread = data
            self._stream.later(self._read)
            return
        taken = self._taken(data)
        if isinstance(taken, Sequence):
            self._answer(taken)
            if self._exchange.over:  # its further pieces need not come here
                self._end(OK)
        else:
            self._picking = asyncio.create_task(self._picked(taken))

    def _read(self) -> None:
        data, self._unread = self._unread, None
        if data is not None:
            self._taken(data)

    def _taken(self, data: bytes) -> Sequence[replies.Reply] | Picking:
        try:
            return self._exchange.take(ext.ProcessingRequest.FromString(data))
        except DecodeError:
            self._end(INTERNAL)
        except Exception as error:
            self._failed(error)
        return ()

    async def _picked(self, picking: Picking) -> None:
        try:
            answers = await picking()
        except Exception as error:
            self._failed(error)
            return
        finally:
            self._picking = None
        with self._stream.together():
            self._answer(answers)
            while self._waiting and self._picking is None and not self._over:
                self._take(self._waiting.popleft())
            if self._heard_all and self._picking is None:
                self._end(OK)

    def _answer(self, answers: Sequence[replies.Reply]) -> None:
        for answer in answers:
            self._say(answer.SerializeToString())

    def _failed(self, error: Exception) -> None:
        _log.error("a pick failed", exc_info=error)
        self._end(UNKNOWN, error)


class Check(Call):
    """grpc.health.v1: whoever is asked here serves."""

    def _message(self, data: bytes) -> None:
        if health_pb2.HealthCheckRequest.FromString(data).service in ("", SERVICE):
            self._tell(health_pb2.HealthCheckResponse.SERVING)
        else:
            self._unknown()

    def _unknown(self) -> None:
        self._end(NOT_FOUND)

    def _tell(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        self._say(health_pb2.HealthCheckResponse(status=status).SerializeToString())


class Watch(Check):
    """The same, told again if it changed: it does not, for as long as there is a connection."""

    def done(self) -> None:
        """The peer has said all; it goes on listening."""

    def _unknown(self) -> None:
        self._tell(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Reflection(Call):
    """What is served here, for tools such as grpcurl: each message asks, and is answered."""

    _servicer: Any = reflection.ReflectionServicer((SERVICE, health.SERVICE_NAME, *REFLECTIONS))

    def _message(self, data: bytes) -> None:
        asked = reflection_pb2.ServerReflectionRequest.FromString(data)
        for answer in self._servicer.ServerReflectionInfo(iter((asked,)), None):
            self._say(answer.SerializeToString())


class Unknown(Call):
    """A method that is not served."""

    def data(self, part: bytes) -> None:
        self._end(UNIMPLEMENTED)

    def done(self) -> None:
        self._end(UNIMPLEMENTED)


def called(path: bytes, stream: Stream, most: int, exchange: Callable[[], Exchange]) -> Call:
    """The call that ``path`` names."""
    match path:
        case b"/envoy.service.ext_proc.v3.ExternalProcessor/Process":
            return Process(stream, most, exchange())
        case b"/grpc.health.v1.Health/Check":
            return Check(stream, most)
        case b"/grpc.health.v1.Health/Watch":
            return Watch(stream, most)
        case (
            b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            | b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        ):
            return Reflection(stream, most)
    return Unknown(stream, most)
