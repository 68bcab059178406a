"""Keys of a prompt that is never tokenised: a chain of hashes over chunks of its text.

They mean something to the router alone. A conversation's next turn begins with the same messages,
and so with the same chunks.
"""

import hashlib

import msgspec
from warmfleet_proto.hashing import chain, keys, root_hash

from warmfleet_router.servers.ask import Ask

CHUNK_BYTES = 64  # of text, and the block of a server that is keyed so counts as ...
BLOCK_TOKENS = 16  # ... this many tokens
_BYTES_A_TOKEN = CHUNK_BYTES // BLOCK_TOKENS
_TOKEN_BYTES = 4  # of hashing.chain's blocks


def text_of(ask: Ask) -> bytes:
    known = ask.known
    if known.messages is not None:
        return b"\x1e".join(map(bytes, known.messages))
    return bytes(known.prompt)


def keys_of(ask: Ask, salt: str) -> tuple[bytes, int]:
    """Packed keys, one a chunk, and about how many tokens the prompt has."""
    text = text_of(ask)
    hashes = chain(_root(ask, salt), text, CHUNK_BYTES // _TOKEN_BYTES)
    return keys(hashes), max(len(text) // _BYTES_A_TOKEN, len(hashes), 1)


def _root(ask: Ask, salt: str) -> bytes:
    """All that stands before or changes the whole prompt."""
    known = ask.known
    raw = (known.tools, known.documents, known.chat_template, known.reasoning_effort)
    before = [ask.model, ask.chat, salt, known.chat_template_kwargs, *map(bytes, raw)]
    digest = hashlib.sha256(msgspec.json.encode(before, order="deterministic")).digest()
    return root_hash(b"warmfleet text v1", CHUNK_BYTES, salt=digest)
