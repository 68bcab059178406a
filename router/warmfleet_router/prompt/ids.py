"""Token ids as they travel: packed u32 little-endian."""

import sys
from array import array
from collections.abc import Iterable, Sequence

assert sys.byteorder == "little", "packed ids are read in place"


def pack(ids: Iterable[int]) -> bytes:
    """Each below 2^32."""
    return array("I", ids).tobytes()


def unpack(packed: bytes) -> Sequence[int]:
    """A view of ``packed``; iterating makes one int at a time."""
    return memoryview(packed).cast("I")
