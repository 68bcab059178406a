"""Token ids as they travel: packed u32 little-endian."""

import struct
from collections.abc import Sequence

from warmfleet_proto.limits import TOKEN_BYTES


def pack(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)
