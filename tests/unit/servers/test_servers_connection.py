"""Answers read from a connection: whole or part by part, however they are cut, and whatever comes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.errors import WorkerLost
from warmfleet_router.servers.connection import MAX_HEAD_BYTES, READ_AHEAD_BYTES, Connection, Reply
from warmfleet_router.servers.pool import ServerPool

PARTS = [b"data: one\n\n", b"data: two\n\n", b"x" * 300, b"data: [DONE]\n\n"]
BODY = b"".join(PARTS)
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in PARTS) + b"0\r\n\r\n"
COUNTED = EVENTS + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
UNTIL_THE_END = EVENTS + b"\r\n" + BODY
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + COUNTED


class Wire(asyncio.Transport):
    """A transport that keeps what is written and whether reading is wanted."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.aborted = False
        self._connection = protocol
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def asked() -> tuple[Connection, Wire, Reply, list[Connection]]:
    over: list[Connection] = []
    connection = Connection(over.append)
    wire = Wire(connection)
    return connection, wire, connection.ask(b"POST"), over


def fed(connection: Connection, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    for a, b in pairwise(edges):
        connection.data_received(data[a:b])


@given(
    answer=st.sampled_from([CHUNKED, COUNTED, UNTIL_THE_END, CONTINUED]),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    before=st.booleans(),
)
def test_an_answer_is_the_same_however_it_is_cut(answer: bytes, cuts: list[int], before: bool) -> None:
    async def read() -> bytes:
        connection, _, reply, over = asked()
        got: list[bytes] = []

        def sink(part: bytes) -> bool:
            got.append(part)
            return True

        pouring = asyncio.create_task(reply.pour(sink))
        if not before:
            await asyncio.sleep(0)
        fed(connection, answer, cuts)
        if answer is UNTIL_THE_END:
            connection.connection_lost(None)
        await pouring
        assert (reply.status, reply.content_type, reply.complete) == (200, "text/event-stream", True)
        reply.release(over=True)
        assert over == [connection]
        assert connection.free == (answer is not UNTIL_THE_END)
        return b"".join(got)

    assert asyncio.run(read()) == BODY


async def test_what_stops_a_pour_leaves_the_rest_for_later() -> None:
    connection, wire, reply, _ = asked()
    got: list[bytes] = []

    def one(part: bytes) -> bool:
        got.append(part)
        return False

    pouring = asyncio.create_task(reply.pour(one))
    await asyncio.sleep(0)
    connection.data_received(CHUNKED)
    await pouring
    assert (got, wire.reading) == ([PARTS[0]], False)
    await reply.pour(one)
    assert got == PARTS[:2]
    assert await reply.part() == b"".join(PARTS[2:])
    assert await reply.part() == b""


async def test_what_the_sink_raises_ends_the_connection() -> None:
    connection, wire, reply, _ = asked()

    def refuses(_: bytes) -> bool:
        raise ConnectionError("the client has left")

    pouring = asyncio.create_task(reply.pour(refuses))
    await asyncio.sleep(0)
    connection.data_received(COUNTED)
    with pytest.raises(ConnectionError, match="has left"):
        await pouring
    assert wire.aborted


async def test_reading_stops_far_ahead_and_goes_on() -> None:
    connection, wire, reply, _ = asked()
    connection.data_received(EVENTS + b"\r\n" + b"x" * READ_AHEAD_BYTES)
    assert wire.reading
    connection.data_received(b"x")
    assert not wire.reading
    assert len(await reply.part()) == READ_AHEAD_BYTES + 1
    assert wire.reading


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"\x00\x01 hello\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "headers exceed"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n", "closed"),
        (b"", "closed"),
        (CHUNKED[:-20], "closed"),
        (COUNTED[:-1], "closed"),
    ],
)
async def test_what_is_no_answer_is_named(answer: bytes, why: str) -> None:
    connection, _, reply, _ = asked()
    connection.data_received(answer)
    connection.connection_lost(None)
    with pytest.raises(WorkerLost, match=why):
        await reply.whole(1 << 20)


@pytest.mark.parametrize("begun", [CHUNKED[:-2] + b"X-Trailer: ", CHUNKED[:-5] + b"3;extension="])
async def test_what_is_neither_head_nor_body_is_bounded(begun: bytes) -> None:
    connection, wire, reply, _ = asked()
    connection.data_received(begun)
    for _ in range(MAX_HEAD_BYTES // 1024 + 1):
        assert not wire.aborted
        connection.data_received(b"x" * 1024)
    assert wire.aborted
    assert await reply.part() == BODY
    with pytest.raises(WorkerLost, match="headers exceed"):
        await reply.part()


async def test_an_answer_that_is_too_long_is_refused() -> None:
    connection, _, reply, _ = asked()
    connection.data_received(COUNTED)
    with pytest.raises(WorkerLost, match="exceeds 100 bytes"):
        await reply.whole(100)


async def test_more_than_was_asked_for_closes_the_connection() -> None:
    for late in (False, True):
        connection, wire, reply, _ = asked()
        connection.data_received(COUNTED if late else COUNTED + COUNTED.replace(b"200 OK", b"500 No"))
        assert (reply.status, await reply.whole(1 << 20)) == (200, BODY)
        if late:
            connection.data_received(COUNTED)
            assert wire.aborted


@given(data=st.lists(st.binary(max_size=80) | st.sampled_from([CHUNKED, COUNTED, b"\r\n", b"HTTP/1.1 "])))
def test_anything_may_come(data: list[bytes]) -> None:
    async def take() -> None:
        connection, _, reply, _ = asked()
        for part in data:
            connection.data_received(part)
        connection.connection_lost(None)
        try:
            await reply.whole(1 << 20)
        except WorkerLost:
            return

    asyncio.run(take())


# ---- the pool, over real sockets

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    serving: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/base"
    finally:
        listening.close()
        await asyncio.gather(*serving)


async def asks(pool: ServerPool, base: str) -> bytes:
    reply = await pool.post(base, "/v1/x", b"{}", {"X-A": "b"})
    try:
        return await reply.whole(1 << 20)
    finally:
        reply.release(over=True)


@pytest.mark.parametrize("answers", [1, 2, 100])
async def test_connections_are_kept_and_stale_ones_replaced(answers: int) -> None:
    """A server that closes after ``answers`` of them; nobody is the wiser."""
    heads: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(answers):
            try:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                break
            await reader.readexactly(2)
            writer.write(CHUNKED)
            await writer.drain()

    pool = ServerPool()
    async with server(serve) as base:
        assert [await asks(pool, base) for _ in range(6)] == [BODY] * 6
        await pool.close()
    assert len(heads) == 6
    assert heads[0].startswith(b"POST /base/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-A: b\r\n" in heads[0]
    assert connections == -(-6 // answers)


@pytest.mark.parametrize(
    ("last_words", "patience", "sent"), [(b"", 60.0, 2), (b"", -1.0, 1), (b"HTTP/1.1 200", 60.0, 1)]
)
async def test_what_a_server_may_have_begun_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, last_words: bytes, patience: float, sent: int
) -> None:
    """Three connections are kept, and then each request ends the one that it comes by. It may have been its
    last end that it met, if no word came and not much later: once, then, and on a connection of its own."""
    monkeypatch.setattr("warmfleet_router.servers.pool.CLOSING_S", patience)
    all_here, heads = asyncio.Barrier(3), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heads
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n{}"):
                heads += 1
                if heads > 3:
                    writer.write(last_words)
                    return
                await all_here.wait()
                writer.write(CHUNKED)

    pool = ServerPool()
    async with server(serve) as base:
        assert await asyncio.gather(*(asks(pool, base) for _ in range(3))) == [BODY] * 3
        with pytest.raises(WorkerLost, match="closed"):
            await asks(pool, base)
        await pool.close()
    assert heads == 3 + sent


async def test_a_server_that_is_not_there_is_lost() -> None:
    async def never(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        return

    pool = ServerPool()
    async with server(never) as base:
        with pytest.raises(WorkerLost, match="closed"):
            await asks(pool, base)
    with pytest.raises(WorkerLost, match="cannot be reached"):
        await asks(pool, base)
    await pool.close()


async def test_an_answer_that_never_ends_costs_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmfleet_router.servers.connection.LAST_WORDS_S", 0.01)
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:-5])
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        left.set()

    pool = ServerPool()
    async with server(serve) as base:
        reply = await pool.post(base, "/v1/x", b"", {})
        assert await reply.part() == BODY
        reply.release(over=True)
        async with asyncio.timeout(5):
            await left.wait()
        await pool.close()
