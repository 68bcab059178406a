"""Blocks for the disk tier's tests: chains of made-up tokens, with copies that can be told apart."""

import hashlib
from pathlib import Path

from warmfleet_proto.hashing import block_hash, root_hash
from warmfleet_worker.tiers.disk import DiskStore, Stored
from warmfleet_worker.tiers.format import Identity
from warmfleet_worker.tiers.made import Made

BLOCK_SIZE = 4


def made(block_bytes: int = 64, **other: object) -> Made:
    fields: dict[str, object] = {
        "model": "tiny",
        "fingerprint": b"f" * 32,
        "layout": hashlib.sha256(b"%d" % block_bytes).digest(),
        "layout_text": f"uint8 {block_bytes}",
        "block_size": BLOCK_SIZE,
        "block_bytes": block_bytes,
    }
    return Made(**(fields | other))  # type: ignore[arg-type]


ROOT = root_hash(b"f" * 32, BLOCK_SIZE)


def copy_of(name: bytes, length: int) -> bytes:
    return hashlib.shake_256(name).digest(length)


def chain_of(number: int, length: int, block_bytes: int = 64) -> list[Stored]:
    """The blocks of one prompt; prompts of different numbers share none."""
    blocks, parent = [], ROOT
    for depth in range(length):
        token_ids = b"".join(n.to_bytes(4, "little") for n in (number, depth, 1, 2))
        own = block_hash(parent, token_ids)
        blocks.append(Stored(Identity(own, parent, ROOT, depth), token_ids, copy_of(own, block_bytes)))
        parent = own
    return blocks


def store(folder: Path, capacity: int = 1 << 30, what: Made | None = None) -> DiskStore:
    return DiskStore(folder, what or made(), capacity)


def read(of: DiskStore, block: Stored) -> bytes | None:
    copy = bytearray(of.made.block_bytes)
    header = of.get(block.identity.hash, block.token_ids, copy)
    return None if header is None else bytes(copy)
