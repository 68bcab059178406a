"""The picker's own gRPC server, asked by gRPC's client."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from warmfleet_proto.channel import Tls, connect
from warmfleet_proto.settings import ConfigError
from warmfleet_router.gateway.intake import Tenants
from warmfleet_router.picker import http2, service
from warmfleet_router.picker.call import SERVICE, Process
from warmfleet_router.picker.exchange import Exchange
from warmfleet_router.picker.http2 import Connection
from warmfleet_router.picker.service import serving

from tests.bars.pick_parts import Bench
from tests.process.test_picker_exchange import needs_demo
from tests.unit.transfer import certificates

pytestmark = needs_demo
PATH = "/v1/chat/completions"
BODY_BYTES = 4 << 20
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
OPENED = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\x44" + bytes((len(PROCESS),)) + PROCESS.encode())
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@contextlib.asynccontextmanager
async def picker(bench: Bench, tls: Tls | None = None) -> AsyncIterator[str]:
    async with serving("127.0.0.1:0", tls, bench.relays, Tenants([]), BODY_BYTES) as address:
        yield address


@pytest.fixture
def bench() -> Bench:
    return Bench("m", [b""])


def body(size: int = 100) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x" * size}]})


def headers(**fields: str) -> Any:
    values = [HeaderValue(key=f":{name}", raw_value=value.encode()) for name, value in fields.items()]
    return ext.HttpHeaders(headers=HeaderMap(headers=values))


def whole(data: bytes) -> Any:
    return ext.ProcessingRequest(request_body=ext.HttpBody(body=data, end_of_stream=True))


BEGUN = ext.ProcessingRequest(request_headers=headers(path=PATH))
ANSWERED = ext.ProcessingRequest(response_headers=headers(status="200"))


async def asked(address: str, *messages: Any, tls: Tls | None = None) -> list[str | None]:
    async with connect(address, tls, message_bytes=BODY_BYTES + (1 << 21)) as channel:
        stub: Any = ExternalProcessorStub(channel)
        return [reply.WhichOneof("response") async for reply in stub.Process(iter(messages))]


def booked(bench: Bench) -> int:
    return sum(worker.bookings for worker in bench.core.workers(20.0))


async def test_a_pick_and_its_end(bench: Bench) -> None:
    async with picker(bench) as address:
        told = await asked(address, BEGUN, whole(body()), ANSWERED)
    assert told == ["request_headers", "request_body", "response_headers"]
    assert bench.core.counters.finished_ok == 1
    assert booked(bench) == 0


async def test_an_embedding_is_picked_for_as_well(bench: Bench) -> None:
    begun = ext.ProcessingRequest(request_headers=headers(path="/v1/embeddings"))
    async with picker(bench) as address:
        told = await asked(address, begun, whole(b'{"model": "m", "input": "hello"}'))
    assert told == ["request_headers", "request_body"]


async def test_a_body_of_many_frames_is_taken_whole_and_a_larger_one_refused(bench: Bench) -> None:
    async with picker(bench) as address:
        assert (await asked(address, BEGUN, whole(body(BODY_BYTES // 2))))[1] == "request_body"
        assert (await asked(address, BEGUN, whole(bytes(BODY_BYTES + 1))))[1] == "immediate_response"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(address, BEGUN, whole(bytes(BODY_BYTES + (1 << 20) + 1)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_body_that_is_given_back_fits_through_the_clients_windows(bench: Bench) -> None:
    begun = ext.ProcessingRequest(request_headers=headers(path=PATH))
    begun.protocol_config.request_body_mode = 4  # full duplex: what came is sent back
    data = body(BODY_BYTES - 1000)
    async with picker(bench) as address, connect(address) as channel:
        stub: Any = ExternalProcessorStub(channel)
        replies = [reply async for reply in stub.Process(iter([begun, whole(data)]))]
    parts = [reply.request_body.response.body_mutation.streamed_response for reply in replies[1:]]
    assert b"".join(part.body for part in parts) == data


@pytest.mark.parametrize("end", ["cancel", "disconnect"])
async def test_a_stream_that_breaks_off_lets_its_load_go(bench: Bench, end: str) -> None:
    async with picker(bench) as address:
        _, writer = await asyncio.open_connection(*address.split(":"))
        settings = http2.frame(http2.SETTINGS, 0, 0)
        writer.write(http2.PREFACE + settings + OPENED + said(BEGUN) + said(whole(body())))
        await until(lambda: booked(bench) == 1)
        if end == "cancel":
            writer.write(http2.frame(http2.RST_STREAM, 0, 1, bytes(4)))
            await until(lambda: booked(bench) == 0)
        writer.transport.abort()
        await until(lambda: booked(bench) == 0)
    assert bench.core.counters.finished_ignore == 1


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not there():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("service", "status"), [("", "SERVING"), ("another", "SERVICE_UNKNOWN")])
async def test_whoever_watches_its_health_hears_of_the_end(bench: Bench, service: str, status: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with picker(bench) as address:
            channel = await stack.enter_async_context(connect(address))
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
            more = asyncio.ensure_future(watch.read())
            await health.Check(health_pb2.HealthCheckRequest())
            assert not more.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await more
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_what_is_not_served_is_said_to_be_so(bench: Bench) -> None:
    async with picker(bench) as address, connect(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        told = await health.Check(health_pb2.HealthCheckRequest())
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="another"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.b/C")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PROCESS)(b"\xff\xff")
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PROCESS)(bytes(1000), compression=grpc.Compression.Gzip)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_failure_of_ours_ends_its_call_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def pick(*_: object) -> None:
        raise RuntimeError("planted")

    async with picker(bench) as address:
        with monkeypatch.context() as patched:
            patched.setattr(bench.relays, "pick", pick)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(address, BEGUN, whole(body()))
            assert caught.value.code() == grpc.StatusCode.UNKNOWN
        assert "planted" in caplog.text
        assert len(await asked(address, BEGUN, whole(body()))) == 2


async def test_no_more_messages_wait_for_a_pick_than_envoy_could_send(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()

    async def pick(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(bench.relays, "pick", pick)
    sent: list[bytes] = []
    peer = Connection(
        sent.append, lambda stream, _: Process(stream, 1 << 20, Exchange(bench.relays, Tenants([]), 1 << 20))
    )
    peer.receive(http2.PREFACE + http2.frame(http2.HEADERS, http2.END_HEADERS, 1))
    for message in (BEGUN, whole(body()), *[ANSWERED] * 64):
        peer.receive(said(message))
        await asyncio.sleep(0)
    assert peer.streams
    assert not cancelled.is_set()
    peer.receive(said(ANSWERED))
    assert not peer.streams
    assert b"grpc-status\x018" in sent[-1]
    await cancelled.wait()


def said(message: Any) -> bytes:
    data = message.SerializeToString()
    data, size = struct.pack("!BI", 0, len(data)) + data, http2.FRAME_BYTES
    return b"".join(http2.frame(http2.DATA, 0, 1, data[at : at + size]) for at in range(0, len(data), size))


async def test_only_who_has_a_certificate_of_the_fleet_is_answered(bench: Bench, tmp_path: Path) -> None:
    fleet = certificates.authority(tmp_path, "fleet")
    ours, envoys = (certificates.certificate(tmp_path, name, fleet) for name in ("ours", "envoys"))
    strange = certificates.certificate(tmp_path, "strange", certificates.authority(tmp_path, "others"))
    async with picker(bench, ours) as address:
        assert len(await asked(address, BEGUN, whole(body()), tls=envoys)) == 2
        with pytest.raises(grpc.aio.AioRpcError):
            await asked(address, BEGUN, whole(body()), tls=Tls(strange.certificate, strange.key, str(fleet)))
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await first_byte(address, ssl.create_default_context(cafile=str(fleet)))
    with pytest.raises(ConfigError, match="tls: /nowhere"):
        async with picker(bench, Tls("/nowhere", ours.key, ours.authority)):
            pass


async def first_byte(address: str, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(*address.split(":"), ssl=context)
    try:
        return await reader.readexactly(1)
    finally:
        writer.transport.abort()


async def test_reflection_tells_what_is_served(bench: Bench) -> None:
    async with picker(bench) as address, connect(address) as channel:
        for version in ("v1", "v1alpha"):
            reflect = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            wanted: list[Any] = [
                reflection_pb2.ServerReflectionRequest(list_services="*"),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
            ]
            listed, found, missing = [answer async for answer in reflect(iter(wanted))]
            names = [each.name for each in listed.list_services_response.service]
            assert SERVICE in names
            assert "grpc.health.v1.Health" in names
            files = found.file_descriptor_response.file_descriptor_proto
            assert any(b"ExternalProcessor" in file for file in files)
            assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [answer async for answer in channel.stream_stream(REFLECT)(iter([b"\xff\xff"]))]
        assert caught.value.code() == grpc.StatusCode.INTERNAL


class Leaver:
    """A peer of a picker that stops: it has a stream under way or not, and may make room for another."""

    def __init__(self, peers: set[Any], idle: bool, *then: "Leaver", settles: bool = False) -> None:
        self.peers, self.idle, self.then, self.ends = peers, idle, then, list[str]()
        self.settles = settles

    def leave(self) -> None:
        self.ends.append("leave")

    def settle(self) -> None:
        self.ends.append("settle")
        self.idle = self.settles

    def close(self) -> None:
        self.ends.append("close")
        self.peers.discard(self)

    def abort(self) -> None:
        self.ends.append("abort")
        self.peers.discard(self)
        self.peers.update(self.then)


async def test_a_picker_that_stops_cuts_off_only_who_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_STOP_S", 0.05)
    monkeypatch.setattr(service, "_PIECE_S", 0.05)
    peers: set[Any] = set()
    late = Leaver(peers, True)  # shook hands until then
    idle, busy, answered = (
        Leaver(peers, True), Leaver(peers, False, late), Leaver(peers, False, settles=True)
    )  # fmt: skip
    peers |= {idle, busy, answered}
    async with asyncio.timeout(60):
        await service._left(peers)
    assert [idle.ends, busy.ends, late.ends, answered.ends] == [
        ["leave", "close"], ["leave", "settle", "abort"], ["abort"], ["leave", "settle", "close"]
    ]  # fmt: skip


async def test_a_taken_address_is_named(bench: Bench) -> None:
    async with picker(bench) as address:
        with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
            async with serving(address, None, bench.relays, Tenants([]), BODY_BYTES):
                pass


async def test_who_speaks_another_protocol_is_shown_the_door(bench: Bench) -> None:
    async with picker(bench) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        goodbye = http2.frame(http2.GOAWAY, 0, 0, bytes(7) + bytes((http2.PROTOCOL_ERROR,)))
        assert (await reader.read()).endswith(goodbye)
        writer.close()
