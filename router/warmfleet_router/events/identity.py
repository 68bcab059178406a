"""What the KV of another engine's prompt means: the root of its chain, on both sides of the index."""

import hashlib

from warmfleet_proto.hashing import root_hash
from warmfleet_proto.limits import HASH_BYTES


def salt_of(adapter: str, cache_salt: str) -> bytes:
    """The salt of a chain's root; empty for a plain prompt."""
    if not adapter and not cache_salt:
        return b""
    h = hashlib.sha256(b"warmfleet engine salt v1")
    for field in (adapter.encode(), cache_salt.encode()):
        h.update(len(field).to_bytes(4, "little"))
        h.update(field)
    return h.digest()


def root(fingerprint: bytes, block_size: int, adapter: str, cache_salt: str) -> bytes:
    return root_hash(fingerprint, block_size, salt=salt_of(adapter, cache_salt))


def mixed(parent: bytes, extras: bytes) -> bytes:
    """The parent of a block that depends on more than its tokens: an image, an embedding."""
    if not extras:
        return parent
    return hashlib.sha256(b"warmfleet block extras v1" + parent + extras).digest()[:HASH_BYTES]
