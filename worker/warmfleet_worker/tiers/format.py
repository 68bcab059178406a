"""The bytes of stored blocks: a preamble, then one record a block, then an index once the file is complete.

    preamble  magic, length, what the copies were made with (JSON), xxh3-64 of all that
    record    header (magic, identity, place, token ids, xxh3-128 of the copy, xxh3-64 of that), the copy
    index     magic, count, one entry a record, then xxh3-128 of the index, its offset, magic

Headers tell where the next record begins, so a file without an index is read by its headers alone. A copy is
checked when it is read. All numbers are little-endian.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import xxhash
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.hashing import block_hash
from warmfleet_proto.limits import TOKEN_BYTES

from warmfleet_worker.tiers.made import Made

Buffer = bytes | bytearray | memoryview

SUFFIX = ".wfkv"
MAX_PREAMBLE_BYTES = 16 << 10
PREAMBLE = struct.Struct("<8sI")
TRAILER = struct.Struct("<16sQ8s")
_HEADER = struct.Struct("<4s16s16s16sIIQ16s16s")
_INDEX = struct.Struct("<4sI")
_ENTRY = struct.Struct("<16s16s16sIQ")
_SUM_BYTES = 8
_FILE, _BLOCK, _LIST, _END = b"WFKVBLK1", b"WFKB", b"WFKI", b"WFKVEND1"


class Identity(NamedTuple):
    """What a stored block is, and where in which chain it stands."""

    hash: bytes
    parent: bytes  # BlockHash of the block before it, or the root
    root: bytes
    depth: int  # blocks before it


class Header(NamedTuple):
    identity: Identity
    sum: bytes  # xxh3-128 of the copy
    token_ids: bytes  # packed u32


class Place(NamedTuple):
    identity: Identity
    offset: int  # of the record in its file


def header_bytes(block_size: int) -> int:
    return _HEADER.size + block_size * TOKEN_BYTES + _SUM_BYTES


def copy_sum(copy: Buffer) -> bytes:
    return xxhash.xxh3_128_digest(copy)


def preamble(made: Made) -> bytes:
    text = msgspec.json.encode(made)
    return _summed(PREAMBLE.pack(_FILE, len(text)) + text)


def begins(start: bytes) -> bool:
    """Whether these can be the first bytes of a file of blocks, however few they are."""
    return start[: len(_FILE)] == _FILE[: len(start)]


def preamble_bytes(start: bytes) -> int:
    """How long the preamble is that begins with ``start``, PREAMBLE.size bytes. Raises Corrupt."""
    magic, length = PREAMBLE.unpack(start)
    if magic != _FILE or length > MAX_PREAMBLE_BYTES:
        raise Corrupt("not a file of KV blocks")
    return PREAMBLE.size + int(length) + _SUM_BYTES


def read_preamble(data: bytes) -> Made:
    """Raises Corrupt."""
    try:
        return msgspec.json.decode(_unsummed(data, "preamble")[PREAMBLE.size :], type=Made)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the preamble does not say what the blocks were made with: {error}") from None


def header(identity: Identity, token_ids: bytes, copy: Buffer, made: Made) -> bytes:
    """The header of the record of a copy whose keys sit where the block stands in its chain."""
    home, length = identity.depth * made.block_size, made.block_bytes
    packed = _HEADER.pack(_BLOCK, *identity, home, length, made.layout_mark, copy_sum(copy))
    return _summed(packed + token_ids)


def read_header(data: bytes, made: Made) -> Header:
    """Raises Corrupt when these are not a header's bytes, or one's made otherwise than the file says."""
    fields = _unsummed(data, "header")
    magic, own, parent, root, depth, home, length, layout, copy = _HEADER.unpack_from(fields)
    if magic != _BLOCK or layout != made.layout_mark or length != made.block_bytes:
        raise Corrupt("the header is not of a block with this layout")
    if home != depth * made.block_size:
        raise Corrupt("the keys do not sit where the block stands")
    identity = Identity(own, parent, root, depth)
    return Header(identity, copy, fields[_HEADER.size :])


def check(found: Header, identity: Identity, token_ids: bytes | None, copy: Buffer) -> None:
    """Raises Corrupt unless the record is that of ``identity`` and ``token_ids`` (None: of any) and its
    copy whole."""
    if found.identity != identity:
        raise Corrupt("another block is stored in its place")
    if token_ids is not None and found.token_ids != token_ids:
        raise Corrupt("the block stands for other tokens")
    if copy_sum(copy) != found.sum:
        raise Corrupt("the checksum of the copy is wrong")


def check_hash(found: Header) -> None:
    """Raises Corrupt when the identity is not that of the tokens: for files that came from elsewhere."""
    identity = found.identity
    if block_hash(identity.parent, found.token_ids) != identity.hash:
        raise Corrupt("the BlockHash is not that of the tokens")
    if (identity.depth == 0) != (identity.parent == identity.root):
        raise Corrupt("the block does not stand where it says")


def index(places: Iterable[Place], offset: int) -> bytes:
    """The index of a file whose records end at ``offset``."""
    entries = [_ENTRY.pack(*place.identity, place.offset) for place in places]
    data = b"".join([_INDEX.pack(_LIST, len(entries)), *entries])
    return data + TRAILER.pack(copy_sum(data), offset, _END)


def index_offset(trailer: bytes) -> int | None:
    """Where the index begins, of a file that ends with ``trailer``; None when it has none."""
    _, offset, magic = TRAILER.unpack(trailer)
    return int(offset) if magic == _END else None


def read_index(data: bytes) -> list[Place]:
    """``data`` runs from the index's offset to the end of the file. Raises Corrupt."""
    body = memoryview(data)[: -TRAILER.size]
    total, _, _ = TRAILER.unpack(data[-TRAILER.size :])
    if copy_sum(body) != total or len(body) < _INDEX.size:
        raise Corrupt("the checksum of the index is wrong")
    magic, count = _INDEX.unpack_from(body)
    if magic != _LIST or len(body) != _INDEX.size + count * _ENTRY.size:
        raise Corrupt("the index is not one")
    entries = _ENTRY.iter_unpack(body[_INDEX.size :])
    return [Place(Identity(own, parent, root, depth), at) for own, parent, root, depth, at in entries]


def _summed(data: bytes) -> bytes:
    return data + xxhash.xxh3_64_digest(data)


def _unsummed(data: bytes, what: str) -> bytes:
    body, total = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if xxhash.xxh3_64_digest(body) != total:
        raise Corrupt(f"the checksum of the {what} is wrong")
    return body
