"""The seal of a grant, which a router makes and one source alone can check.

The fleet key belongs to the routers. Each worker holds only the key derived from it for its own name:
it can check what was granted on its blocks, and forge nothing on those of others.
"""

import hmac
from hashlib import sha256

FLEET_KEY_BYTES = 32

_SOURCE = b"warmfleet grant source v1\0"
_CLAIMS = b"warmfleet grant claims v1\0"


def source_key(fleet_key: bytes, source: str) -> bytes:
    """The 32 bytes that the worker named ``source`` checks grants with."""
    assert len(fleet_key) == FLEET_KEY_BYTES
    return hmac.digest(fleet_key, _SOURCE + source.encode(), sha256)


def seal(key: bytes, claims: bytes) -> bytes:
    """The MAC over serialised Claims; ``key`` is the source's."""
    return hmac.digest(key, _CLAIMS + claims, sha256)


def is_sealed(key: bytes, claims: bytes, mac: bytes) -> bool:
    """Whether ``mac`` is the seal of these claims. Takes the same time for any."""
    return hmac.compare_digest(seal(key, claims), mac)
