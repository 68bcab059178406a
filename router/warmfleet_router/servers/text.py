"""A prompt that is not tokenised: its text in the place of token ids, four bytes to one.

That means something to the router alone, under a root of its own. A conversation's next turn begins with the
same messages, and so with the same blocks, whatever a server's block size.
"""

import hashlib

import msgspec
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES

from warmfleet_router.servers import media
from warmfleet_router.servers.ask import EMBEDS, Ask

BLOCK_TOKENS = 16  # of a server that names no block size
_BEFORE = ("tools", "documents", "chat_template", "reasoning_effort", "chat_template_kwargs")
_BESIDE = ("add_special_tokens", "truncate_prompt_tokens", "mm_processor_kwargs", "media_io_kwargs")


def text_of(ask: Ask) -> bytes:
    known = ask.known
    if ask.whole:
        return b"\x1e".join([bytes(value) for name, value in ask.fields.items() if name != "model"])
    if known.messages is not None:
        return b"\x1e".join(map(media.described, known.messages))
    return bytes(known.prompt) + bytes(ask.fields.get(EMBEDS, b""))


def ids_of(ask: Ask) -> bytes:
    """Packed, about as many as a tokenizer would make of it."""
    text = text_of(ask)[:PROMPT_BYTES]
    return text.ljust(-(-len(text) // TOKEN_BYTES) * TOKEN_BYTES, b"\0")


def salt_of(ask: Ask, salt: str) -> bytes:
    """All that stands before or changes the whole prompt; ``salt`` is the server's."""
    fields = [bytes(ask.fields.get(name, b"")) for name in _BEFORE + _BESIDE]
    named = [b"warmfleet text v2", ask.model, ask.chat, salt, *fields]
    return hashlib.sha256(msgspec.json.encode(named)).digest()
