"""One call without a connection: how it ends, and what is kept of it."""

import asyncio
import gc
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from warmfleet_router.picker import call, http2, replies
from warmfleet_router.picker.call import Process
from warmfleet_router.picker.exchange import Exchange, Picking
from warmfleet_router.picker.hpack import Header
from warmfleet_router.picker.http2 import Connection, Stream

MOST = 1000  # bytes of a message
OPENED = http2.PREFACE + http2.frame(http2.HEADERS, http2.END_HEADERS, 1)
HEADERS = ext.ProcessingRequest(request_headers=ext.HttpHeaders())
BODY = ext.ProcessingRequest(request_body=ext.HttpBody(end_of_stream=True))
SENT: list[Any] = [ext.ProcessingResponse(request_body=ext.BodyResponse())]


class Pick:
    """An exchange whose pick takes until ``free`` is set."""

    def __init__(self, written: Callable[[], int]) -> None:
        self.free = asyncio.Event()
        self.keys = self.timed = self.over = self.holds = False
        self.picked = True
        self.written = written
        self.heard: list[tuple[str | None, int]] = []  # and how many bytes had gone to Envoy by then
        self.taken = self.given_up = self.ends = self.taken_at_end = 0

    def take(self, message: Any) -> Sequence[Any] | Picking:
        self.taken += 1
        self.heard.append((message.WhichOneof("request"), self.written()))
        return self._picked if message.HasField("request_body") else []

    def settle(self) -> bool:
        self.over = True
        return not self.holds

    def ended(self, error: BaseException | None = None) -> None:
        self.ends += 1
        self.taken_at_end = self.taken

    async def _picked(self) -> Sequence[Any]:
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return SENT


class Envoy:
    def __init__(self, *messages: Any) -> None:
        self.sent = bytearray()
        self.pick = Pick(lambda: len(self.sent))
        self.connection = Connection(self._sent, self._accept)
        self.connection.receive(OPENED + b"".join(map(said, messages)))

    def _sent(self, data: bytes) -> None:
        self.sent += data

    def _accept(self, stream: Stream, _: list[Header]) -> Process:
        self.process = Process(stream, MOST, cast(Exchange, self.pick))
        return self.process

    def status(self) -> int:
        assert not self.connection.streams
        return int(self.sent.rpartition(b"grpc-status")[2][1:3].rstrip(b"\0"))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def said(message: Any) -> bytes:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return data_of(struct.pack("!BI", 0, len(data)) + data)


def data_of(part: bytes) -> bytes:
    return http2.frame(http2.DATA, 0, 1, part)


async def test_envoy_goes_on_while_headers_are_read() -> None:
    begun = ext.ProcessingRequest(request_headers=ext.HttpHeaders())
    begun.protocol_config.request_body_mode = 2  # buffered
    answered = ext.ProcessingRequest(response_headers=ext.HttpHeaders())
    for message, kind in ((begun, "request_headers"), (answered, "response_headers")):
        envoy = Envoy()
        before = len(envoy.sent)
        envoy.connection.receive(said(message))
        ((heard, written),) = envoy.pick.heard
        assert heard == kind
        assert envoy.sent[before:written].endswith(replies.goes_on(kind).SerializeToString())


async def test_headers_are_read_before_what_comes_with_them() -> None:
    begun = ext.ProcessingRequest(request_headers=ext.HttpHeaders())
    begun.protocol_config.request_body_mode = 2
    answered = ext.ProcessingRequest(response_headers=ext.HttpHeaders())
    envoy = Envoy(begun, answered, begun)
    kinds = ["request_headers", "response_headers", "request_headers"]
    assert [kind for kind, _ in envoy.pick.heard] == kinds
    envoy = Envoy()
    envoy.connection.receive(said(answered) + http2.frame(http2.RST_STREAM, 0, 1, bytes(4)))
    assert (envoy.pick.taken, envoy.pick.ends) == (1, 1)
    assert envoy.pick.taken_at_end == 1


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (data_of(b"\x01" + bytes(4)), call.UNIMPLEMENTED),
        (data_of(struct.pack("!BI", 0, MOST + 1)), call.RESOURCE_EXHAUSTED),
        (said(bytes(MOST)) + said(bytes(1)), call.RESOURCE_EXHAUSTED),
        (said(b"") * 65, call.RESOURCE_EXHAUSTED),
    ],
    ids=["compressed", "large", "bytes behind a pick", "messages behind a pick"],
)
async def test_who_breaks_the_rules_while_a_pick_is_made_gets_none(broken: bytes, status: int) -> None:
    envoy = Envoy(HEADERS, BODY)
    await turns()
    envoy.connection.receive(broken)
    await turns()
    assert (envoy.pick.ends, envoy.pick.given_up, envoy.status()) == (1, 1, status)


async def test_a_compressed_message_after_a_pick_lets_its_load_go() -> None:
    envoy = Envoy(HEADERS, BODY)
    envoy.pick.free.set()
    await turns()
    assert SENT[0].SerializeToString() in envoy.sent
    envoy.connection.receive(data_of(b"\x01" + bytes(4)))
    assert envoy.pick.ends == 1


async def test_envoy_is_let_go_once_nothing_more_is_learned_of_its_answer() -> None:
    envoy = Envoy(HEADERS)
    envoy.pick.over = True
    piece = ext.ProcessingRequest(response_body=ext.HttpBody(body=b"x"))
    envoy.connection.receive(said(piece))
    assert (envoy.pick.taken, envoy.pick.ends, envoy.status()) == (2, 1, call.OK)


@pytest.mark.parametrize("holds", [False, True])
async def test_a_picker_that_leaves_waits_for_a_piece_only_if_it_holds_the_one_before(holds: bool) -> None:
    envoy = Envoy(HEADERS)
    envoy.pick.holds = holds
    envoy.process.settle()
    assert bool(envoy.connection.streams) is holds
    if holds:
        envoy.connection.receive(said(ext.ProcessingRequest(response_body=ext.HttpBody(body=b"x"))))
    assert envoy.status() == call.OK


async def test_what_waits_behind_a_pick_is_taken_after_it() -> None:
    envoy = Envoy(HEADERS, BODY, *[HEADERS] * 64)
    assert envoy.pick.taken == 2
    envoy.pick.free.set()
    await turns()
    assert envoy.pick.taken == 66


async def test_a_pick_that_is_not_wanted_any_more_never_begins() -> None:
    envoy = Envoy(HEADERS, BODY)
    envoy.connection.receive(http2.frame(http2.RST_STREAM, 0, 1, bytes(4)))
    await turns()
    pick = envoy.pick
    del envoy
    gc.collect()  # a coroutine that nobody awaited would warn
    assert (pick.ends, pick.given_up) == (1, 0)


async def test_nothing_is_kept_for_a_call_that_only_waits_to_say_how_it_ended() -> None:
    envoy = Envoy()
    envoy.connection.window = 0
    envoy.process._say(b"waits")
    for _ in range(100):
        envoy.connection.receive(data_of(b"\x01" + bytes(1000)))
    assert envoy.connection.streams
    assert not envoy.process._heard


async def test_messages_are_the_same_however_their_frames_are_cut() -> None:
    message = struct.pack("!BI", 0, len(data := HEADERS.SerializeToString())) + data
    for cut in range(len(message) + 1):
        envoy = Envoy()
        for part in (message[:cut], message[cut:] + message[: cut // 2], message[cut // 2 :]):
            envoy.connection.receive(data_of(part))
        assert envoy.pick.taken == 2
