"""One HTTP/2 connection without a socket: what is sent for what comes."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.picker import http2
from warmfleet_router.picker.hpack import Header
from warmfleet_router.picker.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Broken,
    Connection,
    Stream,
    frame,
)

GREETING = PREFACE + frame(http2.SETTINGS, 0, 0)
PATH = b"\x44\x02/x"
OPENED = frame(http2.HEADERS, END_HEADERS, 1, PATH)


class Heard:
    def __init__(self, stream: Stream, headers: list[Header], said: list[object]) -> None:
        self.stream = stream
        self.said = said
        said.append(dict(headers).get(b":path"))

    def data(self, part: bytes) -> None:
        self.said.append(part)

    def done(self) -> None:
        self.said.append("done")

    def gone(self) -> None:
        self.said.append("gone")


class Peer:
    """The other end: ``said`` to the calls of its streams, ``sent`` to it."""

    def __init__(self, *parts: bytes) -> None:
        self.sent: list[bytes] = []
        self.writes = 0
        self.said: list[object] = []
        self.calls: list[Heard] = []
        self.connection = Connection(self.send, self.accept)
        for part in (GREETING, *parts):
            self.connection.receive(part)
        self.sent.clear()

    def send(self, written: bytes) -> None:
        """Kept a frame at a time."""
        self.writes += 1
        at = 0
        while at < len(written):
            end = at + 9 + int.from_bytes(written[at : at + 3])
            self.sent.append(written[at:end])
            at = end

    def accept(self, stream: Stream, headers: list[Header]) -> Heard:
        self.calls.append(Heard(stream, headers, self.said))
        return self.calls[-1]

    def answers(self, data: bytes) -> list[bytes]:
        self.sent.clear()
        self.connection.receive(data)
        return self.sent

    def bytes_sent(self) -> int:
        """Of data."""
        return sum(len(piece) - 9 for piece in self.sent if piece[3] == http2.DATA)


def number(value: int) -> bytes:
    return struct.pack("!I", value)


def setting(name: int, value: int) -> bytes:
    return frame(http2.SETTINGS, 0, 0, struct.pack("!HI", name, value))


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_the_same_however_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    padded = frame(http2.DATA, http2.PADDED, 1, b"\x03two" + bytes(3))
    headers = frame(http2.HEADERS, http2.PRIORITISED, 3, bytes(5) + PATH[:2])
    rest = frame(http2.CONTINUATION, END_HEADERS, 3, PATH[2:])
    frames = [OPENED, frame(http2.DATA, 0, 1, b"one"), padded, headers, rest]
    frames += [frame(0xFA, 0, 1, b"unknown"), frame(http2.DATA, END_STREAM, 1), frame(http2.PRIORITY, 0, 1)]
    data, peer, at = GREETING + b"".join(frames), Peer(), 0
    peer.connection = Connection(peer.send, peer.accept)
    while at < len(data):
        size = chance.randrange(1, 40)
        peer.connection.receive(data[at : at + size])
        at += size
    assert peer.said == [b"/x", b"one", b"two", b"/x", "done"]


def test_pings_and_settings_are_answered() -> None:
    peer = Peer()
    assert peer.answers(frame(http2.PING, 0, 0, b"12345678")) == [frame(http2.PING, ACK, 0, b"12345678")]
    assert peer.answers(frame(http2.PING, ACK, 0, b"12345678")) == []
    assert peer.answers(setting(2, 0)) == [frame(http2.SETTINGS, ACK, 0)]
    assert peer.answers(frame(http2.SETTINGS, ACK, 0)) == []


def test_what_comes_together_is_answered_in_one_write() -> None:
    peer, ping = Peer(), frame(http2.PING, 0, 0, b"12345678")
    before = peer.writes
    assert len(peer.answers(setting(2, 0) + ping * 3)) == 4
    assert peer.writes == before + 1


def test_what_a_call_does_later_comes_after_its_answer() -> None:
    peer, seen = Peer(OPENED), list[int]()
    (call,) = peer.calls
    before = peer.writes

    def later() -> None:
        seen.append(peer.writes)
        call.stream.say(b"more")

    with call.stream.together():
        call.stream.later(later)
        call.stream.say(b"said")
        with call.stream.together():
            call.stream.say(b"within")
    assert seen == [before + 1]
    assert peer.writes == before + 2
    assert [piece[9:] for piece in peer.sent] == [b"said", b"within", b"more"]


def test_what_is_said_waits_for_the_peers_windows() -> None:
    peer = Peer(setting(4, 20_000), OPENED)
    (call,) = peer.calls
    call.stream.say(bytes(100_000))
    call.stream.end(b"bye")
    assert peer.bytes_sent() == 20_000
    assert max(map(len, peer.sent)) == http2.FRAME_BYTES + 9
    peer.answers(frame(http2.WINDOW_UPDATE, 0, 1, number(70_000)))
    assert peer.bytes_sent() == 65_535 - 20_000, "the connection's own is next"
    peer.answers(frame(http2.WINDOW_UPDATE, 0, 0, number(1000)))
    assert peer.bytes_sent() == 1000
    peer.answers(frame(http2.WINDOW_UPDATE, 0, 0, number(1 << 20)))
    assert peer.bytes_sent() == 90_000 - 66_535
    peer.answers(setting(4, 30_000))
    assert peer.bytes_sent() == 10_000
    assert peer.sent[-2:] == [
        frame(http2.HEADERS, END_HEADERS | END_STREAM, 1, b"bye"),
        frame(http2.RST_STREAM, 0, 1, number(http2.NO_ERROR)),
    ]
    assert not peer.connection.streams
    assert not peer.connection.stuck


def test_a_peer_may_go_on_sending_what_was_read() -> None:
    piece, granted = frame(http2.DATA, 0, 1, bytes(http2.FRAME_BYTES)), {0: 0, 1: 0}
    peer = Peer(OPENED)
    pieces = 3 * http2.ALL_BYTES // http2.FRAME_BYTES
    for _ in range(pieces):
        for answer in peer.answers(piece):
            stream, more = struct.unpack("!5xII", answer)
            assert answer[3] == http2.WINDOW_UPDATE
            granted[stream] += more
    assert granted[0] == pieces * http2.FRAME_BYTES
    assert granted[1] == pieces * http2.FRAME_BYTES


def test_who_does_not_read_is_not_read_from() -> None:
    peer, piece = Peer(OPENED), frame(http2.DATA, 0, 1, bytes(http2.FRAME_BYTES))
    peer.calls[0].stream.say(bytes(65_535 + http2.WINDOW_BYTES))
    for _ in range(http2.WINDOW_BYTES // http2.FRAME_BYTES):
        assert peer.answers(piece) == []
    with pytest.raises(Broken, match="more data") as caught:
        peer.connection.receive(piece)
    assert caught.value.code == http2.FLOW_CONTROL_ERROR
    peer.answers(frame(http2.WINDOW_UPDATE, 0, 0, number(1)))
    peer.answers(frame(http2.WINDOW_UPDATE, 0, 1, number(1)))
    granted = http2.WINDOW_BYTES + http2.FRAME_BYTES
    assert peer.sent[-1] == frame(http2.WINDOW_UPDATE, 0, 1, number(granted))


@pytest.mark.parametrize(
    ("what", "most"),
    [
        (frame(http2.WINDOW_UPDATE, 0, 0, number(1)), 1),
        (frame(http2.WINDOW_UPDATE, 0, 1, number(1)), 1),
        (b"".join(setting(4, size) for size in (1, 0, 1, 0, 1)), 50),
        (setting(4, 0) * 5, 0),
    ],
    ids=["all", "one", "widened", "narrowed"],
)
def test_a_frame_makes_no_work_for_streams_that_gain_nothing(
    what: bytes, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty streams wait for their own window, or (first case) for the connection's."""
    alone = what == frame(http2.WINDOW_UPDATE, 0, 0, number(1))
    first = setting(4, 65_535 if alone else 0)
    peer = Peer(first, *[frame(http2.HEADERS, END_HEADERS, n, PATH) for n in range(1, 100, 2)])
    for call in peer.calls:
        call.stream.say(bytes(65_536))
    pump, pumped = Stream.pump, []

    def counted(stream: Stream) -> None:
        pumped.append(stream)
        pump(stream)

    monkeypatch.setattr(Stream, "pump", counted)
    peer.answers(what)
    assert len(pumped) <= most


def test_a_stream_that_is_gone_waits_for_no_window() -> None:
    peer = Peer(OPENED)
    peer.connection.window = 0
    peer.calls[0].stream.say(b"waits")
    assert peer.connection.stuck
    assert peer.answers(frame(http2.RST_STREAM, 0, 1, number(8))) == []
    assert not peer.connection.stuck
    assert peer.answers(frame(http2.WINDOW_UPDATE, 0, 0, number(100))) == []


@pytest.mark.parametrize("seed", range(20))
def test_all_that_is_said_arrives_whatever_the_windows(seed: int) -> None:
    chance, peer = random.Random(seed), Peer()
    said: dict[int, bytes] = {}
    for n in range(1, 40, 2):
        peer.connection.receive(frame(http2.HEADERS, END_HEADERS | END_STREAM, n, PATH))
        said[n] = chance.randbytes(chance.choice((0, 1, 1000, 70_000, 200_000)))
        peer.calls[-1].stream.say(said[n])
        peer.calls[-1].stream.end(b"bye")
        if chance.random() < 0.3:
            peer.connection.receive(setting(4, chance.randrange(100_000)))
    while peer.connection.streams:
        grown = chance.choice((0, *peer.connection.streams))
        peer.connection.receive(frame(http2.WINDOW_UPDATE, 0, grown, number(chance.randrange(1, 50_000))))
        if chance.random() < 0.2:
            peer.connection.receive(setting(4, chance.randrange(100_000)))
    heard = dict.fromkeys(said, b"")
    for piece in peer.sent:
        if piece[3] == http2.DATA:
            heard[struct.unpack_from("!5xI", piece)[0]] += piece[9:]
    assert heard == said
    assert not peer.connection.stuck


def test_a_call_hears_once_that_it_is_gone() -> None:
    peer = Peer(OPENED)
    assert peer.answers(frame(http2.RST_STREAM, 0, 1, number(8))) == []
    peer.connection.closed()
    assert peer.said == [b"/x", "gone"]
    assert peer.answers(frame(http2.DATA, 0, 1, b"late")) == []
    peer.calls[0].stream.say(b"to nobody")
    peer.calls[0].stream.end(b"bye")
    assert peer.sent == []


def test_a_connection_that_breaks_takes_its_calls_along() -> None:
    peer = Peer(OPENED, frame(http2.HEADERS, END_HEADERS | END_STREAM, 3, PATH))
    peer.calls[1].stream.end(b"bye")
    peer.connection.abandon(http2.PROTOCOL_ERROR)
    assert peer.said == [b"/x", b"/x", "done", "gone"]
    assert peer.sent[-1] == frame(http2.GOAWAY, 0, 0, number(3) + number(http2.PROTOCOL_ERROR))


def test_who_leaves_takes_no_more_streams() -> None:
    peer = Peer(OPENED)
    peer.connection.leave()
    refused = frame(http2.RST_STREAM, 0, 3, number(http2.REFUSED_STREAM))
    assert peer.answers(frame(http2.HEADERS, END_HEADERS, 3, PATH)) == [refused]
    peer.connection.receive(frame(http2.DATA, END_STREAM, 1, b"goes on"))
    assert peer.said == [b"/x", b"goes on", "done"]


def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "MAX_STREAMS", 1)
    refused = frame(http2.RST_STREAM, 0, 3, number(http2.REFUSED_STREAM))
    assert Peer(OPENED).answers(frame(http2.HEADERS, END_HEADERS, 3, PATH)) == [refused]


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (frame(http2.DATA, 0, 1, bytes(http2.FRAME_BYTES + 1)), http2.FRAME_SIZE_ERROR),
        (frame(http2.DATA, 0, 5, b"x"), http2.PROTOCOL_ERROR),
        (frame(http2.DATA, 0, 0, b"x"), http2.PROTOCOL_ERROR),
        (frame(http2.DATA, http2.PADDED, 1, b"\x02x"), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, END_HEADERS, 2, PATH), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, END_HEADERS, 0, PATH), http2.PROTOCOL_ERROR),
        (OPENED, http2.PROTOCOL_ERROR),  # a second time
        (frame(http2.HEADERS, END_HEADERS, 3, b"\xff"), http2.COMPRESSION_ERROR),
        (frame(http2.HEADERS, 0, 3, PATH) + OPENED, http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 0, 3, PATH) + frame(http2.DATA, 0, 1), http2.PROTOCOL_ERROR),
        (frame(http2.CONTINUATION, END_HEADERS, 3, PATH), http2.PROTOCOL_ERROR),
        (frame(http2.HEADERS, 0, 3, PATH) + frame(http2.CONTINUATION, 0, 3), http2.ENHANCE_YOUR_CALM),
        (
            frame(http2.HEADERS, 0, 3, PATH) + 2 * frame(http2.CONTINUATION, 0, 3, bytes(9000)),
            http2.ENHANCE_YOUR_CALM,
        ),
        (frame(http2.PUSH_PROMISE, 0, 1), http2.PROTOCOL_ERROR),
        (frame(http2.PING, 0, 0, b"short"), http2.FRAME_SIZE_ERROR),
        (frame(http2.SETTINGS, 0, 0, b"short"), http2.FRAME_SIZE_ERROR),
        (frame(http2.SETTINGS, ACK, 0, bytes(6)), http2.FRAME_SIZE_ERROR),
        (setting(4, 1 << 31), http2.FLOW_CONTROL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, number(0)), http2.PROTOCOL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 0, number(http2.MAX_WINDOW)), http2.FLOW_CONTROL_ERROR),
        (frame(http2.WINDOW_UPDATE, 0, 5, number(1)), http2.PROTOCOL_ERROR),
        (frame(http2.RST_STREAM, 0, 5, number(0)), http2.PROTOCOL_ERROR),
        (frame(http2.RST_STREAM, 0, 1, b"short"), http2.PROTOCOL_ERROR),
    ],
)
def test_who_breaks_the_rules_is_told_which(broken: bytes, code: int) -> None:
    peer = Peer(OPENED)
    with pytest.raises(Broken) as caught:
        peer.connection.receive(broken)
    assert caught.value.code == code


payloads = st.binary(max_size=12) | st.sampled_from([PATH, number(1), number(1 << 30), bytes(6), bytes(8)])
frames = st.builds(
    frame, st.integers(0, 10), st.sampled_from([0, 1, 4, 5, 8, 0x2D]), st.integers(0, 7), payloads
)


@given(st.lists(frames, max_size=30), st.booleans())
def test_whatever_comes_each_call_ends_once(sent: list[bytes], answering: bool) -> None:
    peer = Peer()
    try:
        for piece in sent:
            peer.connection.receive(piece)
            for call in peer.calls if answering else ():
                call.stream.say(b"told")
                call.stream.end(b"bye")
    except Broken as broken:
        peer.connection.abandon(broken.code)
    peer.connection.closed()
    assert not peer.connection.streams
    assert not peer.connection.stuck
    assert peer.said.count("gone") == (0 if answering else len(peer.calls))
    assert all(call.stream.over and not hasattr(call.stream, "call") for call in peer.calls)


def test_another_protocol_is_seen_by_its_first_bytes() -> None:
    peer = Peer()
    for data in (b"GET / HTTP/1.1\r\n", b"PRI * HTTP/1"):
        with pytest.raises(Broken):
            Connection(peer.sent.append, peer.accept).receive(data)
