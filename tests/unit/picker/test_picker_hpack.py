"""Header blocks, against the examples of RFC 7541 and blocks that break it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.picker import hpack
from warmfleet_router.picker.hpack import Decoder, Header, Malformed

GET: list[Header] = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
FIRST = [*GET, (b":authority", b"www.example.com")]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]


@pytest.mark.parametrize(
    "blocks",
    [
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ],
    ids=["plain (C.3)", "Huffman (C.4)"],
)
def test_the_requests_of_appendix_c(blocks: tuple[str, ...]) -> None:
    decoder = Decoder()
    assert [decoder.headers(bytes.fromhex(block)) for block in blocks] == [FIRST, SECOND, THIRD]


def test_every_character_has_a_code_and_no_code_begins_another() -> None:
    assert sorted(hpack._SYMBOLS.values()) == list(range(256))
    # with the end of a string, of 30 bits, the codes leave no gap
    assert sum(2.0 ** (1 - code.bit_length()) for code in hpack._SYMBOLS) + 2.0**-30 == 1.0


@given(st.lists(st.sampled_from([0, 0xF8, 0xFE, 0xFF]) | st.integers(0, 255), max_size=12).map(bytes))
def test_bytes_of_huffmans_code_say_what_their_bits_say(text: bytes) -> None:
    made, rest = bytearray(), "1"
    for bit in "".join(f"{byte:08b}" for byte in text):
        rest += bit
        if (symbol := hpack._SYMBOLS.get(int(rest, 2))) is not None:
            made.append(symbol)
            rest = "1"
    if len(rest) > 8 or "0" in rest:
        with pytest.raises(Malformed):
            hpack._unpacked(text)
    else:
        assert hpack._unpacked(text) == made


def test_a_table_is_as_small_as_its_peer_says() -> None:
    decoder = Decoder()
    entry = b"\x40\x01a\x01b"
    assert decoder.headers(entry + b"\xbe") == [(b"a", b"b")] * 2
    assert decoder.headers(b"\x3f\x03" + entry + b"\xbe") == [(b"a", b"b")] * 2  # 34 bytes: one entry
    with pytest.raises(Malformed, match="entry"):
        decoder.headers(b"\xbf")
    assert decoder.headers(b"\x20\x82") == [(b":method", b"GET")]
    with pytest.raises(Malformed, match="entry"):
        decoder.headers(entry + b"\xbe")


def test_a_table_may_be_given_up_and_taken_again() -> None:
    decoder = Decoder()
    assert decoder.headers(b"\x20\x82") == [(b":method", b"GET")]
    assert decoder.headers(b"\x20\x3f\xe1\x1f\x40\x01a\x01b") == [(b"a", b"b")]
    assert decoder.headers(b"\xbe") == [(b"a", b"b")]


def test_without_a_table_equal_blocks_are_read_once() -> None:
    first, second = Decoder(), Decoder()
    first.headers(b"\x20")
    second.headers(b"\x20")
    block = b"\x82\x44\x02/x"
    assert first.headers(block) is second.headers(block)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "entry"),  # index 0
        ("be", "entry"),  # of an empty table
        ("3fe21f", "larger"),  # a table of 4,097 bytes
        ("8220", "within"),
        ("ff", "integer"),
        ("ffffffffffff", "integer"),
        ("4403", "string"),
        ("0001", "string"),
        ("00", "integer"),
        ("4481ff", "character"),  # eight bits of padding
        ("448100", "character"),  # padding of zeros
        ("4484ffffffff", "after its end"),  # the end of a string within it
    ],
)
def test_what_breaks_the_rules_is_malformed(block: str, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        Decoder().headers(bytes.fromhex(block))
