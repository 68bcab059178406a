"""Block identity: the one implementation that router and worker share.

A BlockHash names a block together with its whole prefix: the first 16 bytes of SHA-256 over the
parent's BlockHash and the block's token ids as little-endian u32. The root parent says what the
KV *means*: model, block size, adapter and tenant salt. xxhash is not an identity (two blocks with
equal xxh64 are forged in seconds); it serves checksums and digests only.
"""

import hashlib
from functools import lru_cache
from itertools import pairwise

import xxhash

from warmfleet_proto.limits import HASH_BYTES, KEY_BYTES, TOKEN_BYTES

_MASK = (1 << 128) - 1
_PIECE = 512  # tokens of blocks that are remembered together


@lru_cache(maxsize=1024)  # tenants and kinds of workers are few
def root_hash(fingerprint: bytes, block_size: int, salt: bytes = b"") -> bytes:
    """The parent of every first block (16 bytes). Fields are length-prefixed: none can pose as another."""
    h = hashlib.sha256(b"warmfleet block root v1")
    for field in (
        fingerprint,
        block_size.to_bytes(4, "little"),
        b"",
        salt,
    ):  # third: an adapter; ours have none
        h.update(len(field).to_bytes(4, "little"))
        h.update(field)
    return h.digest()[:HASH_BYTES]


def block_hash(parent: bytes, token_ids: bytes) -> bytes:
    """The BlockHash (16 bytes) of one full block; ``token_ids`` packed u32 little-endian."""
    return hashlib.sha256(parent + token_ids).digest()[:HASH_BYTES]


def chain(root: bytes, token_ids: bytes, block_size: int) -> list[bytes]:
    """BlockHashes of all *full* blocks of a prompt, in order; a partial tail has none."""
    piece = max(_PIECE // block_size, 1) * block_size * TOKEN_BYTES
    whole = len(token_ids) // piece * piece
    hashes, parent = [], root
    for start in range(0, whole, piece):
        hashes += _remembered(parent, token_ids[start : start + piece], block_size)
        parent = hashes[-1]
    return hashes + _links(parent, token_ids[whole:], block_size)


@lru_cache(maxsize=4096)  # 2M tokens in blocks of up to 512, and some 4 kB each in blocks of 16
def _remembered(parent: bytes, token_ids: bytes, block_size: int) -> list[bytes]:
    """A conversation comes again with every turn, an agent's prefix with every request."""
    return _links(parent, token_ids, block_size)


def _links(parent: bytes, token_ids: bytes, block_size: int) -> list[bytes]:
    size = block_size * TOKEN_BYTES
    hashes, sha256 = [], hashlib.sha256
    for start, end in pairwise(range(0, len(token_ids) + 1, size)):
        parent = sha256(parent + token_ids[start:end]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes


def token_digest(token_ids: bytes) -> bytes:
    """What two who both have a run's packed token ids compare instead of them (32 bytes, SHA-256)."""
    return hashlib.sha256(token_ids).digest()


def keys(hashes: list[bytes]) -> bytes:
    """The 8-byte index keys of a chain, packed."""
    return b"".join([h[:KEY_BYTES] for h in hashes])


def presence(block: bytes, tier: int) -> int:
    """What one present block adds to a worker's digest; removal subtracts it, modulo 2^128."""
    return xxhash.xxh3_128_intdigest(block + tier.to_bytes(1, "little"))


def digest_bytes(total: int) -> bytes:
    """A digest as it travels: 16 bytes little-endian."""
    return (total & _MASK).to_bytes(16, "little")
