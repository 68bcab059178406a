"""Parts of a chat's messages that are no text: images, sounds, films. They are told apart by their bytes.

An engine's template and tokenizer put the same few ids in the place of any of them, so the ids of a
prompt do not say what it means.
"""

import hashlib
from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from warmfleet_router.gateway.messages import NULL

PART_BYTES = 576 * 4  # of text that one counts as: an image of 336 x 336 pixels in patches of 14
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking")


class _Message(Struct):
    content: Raw = NULL


class _Part(Struct):
    type: str = ""


_message = msgspec.json.Decoder(_Message)
_parts = msgspec.json.Decoder(list[Raw])
_part = msgspec.json.Decoder(_Part | str)


def is_in(messages: Iterable[Raw]) -> bool:
    return any(_media(message) for message in messages)


def described(message: Raw) -> bytes:
    """The message with a digest in the place of each part that is no text."""
    text = bytes(message)
    for part in _media(message):
        digest = hashlib.sha256(part).hexdigest().encode()
        text = text.replace(part, digest * (PART_BYTES // len(digest)))
    return text


def _media(message: Raw) -> list[bytes]:
    """The parts of a message that are no text, as they stand in it. A malformed message has none: its server
    will refuse it."""
    try:
        content = bytes(_message.decode(message).content)
        parts = [bytes(part) for part in _parts.decode(content)] if content[:1] == b"[" else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [part for part in parts if not _is_text(part)]


def _is_text(part: bytes) -> bool:
    try:
        known = _part.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(known, str) or known.type in _TEXTS
