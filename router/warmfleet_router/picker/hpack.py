"""HPACK (RFC 7541): the header blocks of HTTP/2, read.

Pure. A peer that was told to keep no table (we do tell it) sends each block in full, and the same block
for each of its calls: those are read once.
"""

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

TABLE_BYTES = 4096  # of the dynamic table, until the peer has heard of a smaller one
_ENTRY_BYTES = 32  # that an entry counts beside its name and value
_KEPT = 256  # blocks that were read before
_STEPS = 1 << 14  # of Huffman's code: text in ASCII makes fewer

Header = tuple[bytes, bytes]


class Malformed(Exception):
    """The header block is broken. Nothing that comes on the connection after it can be read."""


class Decoder:
    """Decodes the header blocks of one connection, which have to be read in the order in which they came."""

    def __init__(self) -> None:
        self._entries: deque[Header] = deque()  # the latest first
        self._size = 0
        self._most = TABLE_BYTES

    def headers(self, block: bytes) -> list[Header]:
        """The headers of one block; the list may be shared, so it is to be read only. Raises Malformed."""
        at = 0
        while at < len(block) and block[at] & 0xE0 == 0x20:  # the table's size, which only begins a block
            self._most, at = _integer(block, at, 5)
            if self._most > TABLE_BYTES:
                raise Malformed("a table larger than was allowed")
            self._evict()
        return list(self._fields(block[at:])) if self._most else _alone(block[at:])

    def _fields(self, block: bytes) -> Iterator[Header]:
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # name and value by their place in the table
                index, at = _integer(block, at, 7)
                yield self._entry(index)
            elif first & 0x40:  # a literal that becomes an entry
                header, at = self._literal(block, at, 6)
                self._add(header)
                yield header
            elif first & 0x20:
                raise Malformed("the table's size within a block")
            else:
                header, at = self._literal(block, at, 4)
                yield header

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[Header, int]:
        index, at = _integer(block, at, bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if not 0 <= index < len(self._entries):
            raise Malformed("no such entry")
        return self._entries[index]

    def _add(self, header: Header) -> None:
        self._entries.appendleft(header)
        self._size += _ENTRY_BYTES + len(header[0]) + len(header[1])
        self._evict()

    def _evict(self) -> None:
        while self._size > self._most:
            name, value = self._entries.pop()
            self._size -= _ENTRY_BYTES + len(name) + len(value)


@lru_cache(_KEPT)
def _alone(block: bytes) -> list[Header]:
    """Headers of a block that refers to none before it."""
    decoder = Decoder()
    decoder._most = 0
    return list(decoder._fields(block))


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """One that begins in the low ``bits`` of a byte, and where it ends."""
    most = (1 << bits) - 1
    try:
        value = block[at] & most
        if value < most:
            return value, at + 1
        for n in range(4):
            byte = block[at + 1 + n]
            value += (byte & 0x7F) << 7 * n
            if byte < 0x80:
                return value, at + 2 + n
    except IndexError:
        pass
    raise Malformed("an integer without an end")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    packed = at < len(block) and block[at] & 0x80
    size, at = _integer(block, at, 7)
    text = block[at : at + size]
    if len(text) < size:
        raise Malformed("a string without an end")
    return _unpacked(text) if packed else text, at + size


def _unpacked(text: bytes) -> bytes:
    """The bytes that Huffman's code stands for. Raises Malformed."""
    made, rest = bytearray(), 1
    for byte in text:
        symbols, rest = _step(rest, byte)
        made += symbols
    if rest not in _PADDING:
        raise Malformed("a string that breaks off within a character")
    return bytes(made)


@lru_cache(_STEPS)
def _step(rest: int, byte: int) -> tuple[bytes, int]:
    """The characters that a byte completes, and the bits behind them, as ``rest`` had them: after a 1."""
    symbols = bytearray()
    for shift in range(7, -1, -1):
        rest = rest << 1 | byte >> shift & 1
        if rest in _SYMBOLS:
            symbols.append(_SYMBOLS[rest])
            rest = 1
    if rest >> _LONGEST:
        raise Malformed("a string that goes on after its end")
    return bytes(symbols), rest


# Appendix B. The code is canonical: by length, then by symbol, each is the one before it plus one.
_BY_LENGTH = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\0$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: bytes((128, 130, 131, 162, 184, 194, 224, 226)),
    21: bytes((153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230)),
    22: bytes((129, *range(132, 135), 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181))
    + bytes((185, 186, 187, 189, 190, 196, 198, 228, 232, 233)),
    23: bytes((1, 135, *range(137, 142), 143, 147, *range(149, 153), 155, 157, 158, 165, 166, 168))
    + bytes((174, 175, 180, 182, 183, 188, 191, 197, 231, 239)),
    24: bytes((9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237)),
    25: bytes((199, 207, 234, 235)),
    26: bytes((192, 193, *range(200, 203), 205, 210, 213, 218, 219, 238, 240, 242, 243, 255)),
    27: bytes((203, 204, 211, 212, 214, *range(221, 224), 241, *range(244, 249), *range(250, 255))),
    28: bytes((*range(2, 9), 11, 12, *range(14, 22), *range(23, 32), 127, 220, 249)),
    30: bytes((10, 13, 22)),  # and the end of a string, which is never sent
}


def _codes() -> Iterator[tuple[int, int]]:
    """All codes, with a 1 before each, so that codes of unequal length are unequal numbers; and their
    symbols."""
    code = 0
    for length, longer in pairwise([*_BY_LENGTH, 31]):
        for symbol in _BY_LENGTH[length]:
            yield 1 << length | code, symbol
            code += 1
        code <<= longer - length


_SYMBOLS = dict(_codes())
_LONGEST = 30  # bits
_PADDING = {(2 << bits) - 1 for bits in range(8)}  # ones

# Appendix A.
_STATIC: tuple[Header, ...] = (
    (b":authority", b""),
    *((b":method", method) for method in (b"GET", b"POST")),
    *((b":path", path) for path in (b"/", b"/index.html")),
    *((b":scheme", scheme) for scheme in (b"http", b"https")),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in b"""
        accept-language accept-ranges accept access-control-allow-origin age allow authorization
        cache-control content-disposition content-encoding content-language content-length content-location
        content-range content-type cookie date etag expect expires from host if-match if-modified-since
        if-none-match if-range if-unmodified-since last-modified link location max-forwards
        proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie
        strict-transport-security transfer-encoding user-agent vary via www-authenticate
        """.split()
    ),
)
