"""What a client asks of the small OpenAI API, as token ids: a word is a token, token 7 is spelt ``w7``."""

import re
from typing import Annotated

import msgspec
import xxhash
from msgspec import Meta
from warmfleet_proto.errors import BadRequest

_WORD = re.compile(r"\S+")
_SPELT = re.compile(r"w(\d{1,9})$")


class Message(msgspec.Struct):
    role: str
    content: str | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Ask(msgspec.Struct):
    """The fields that change something here; others are accepted and change nothing."""

    prompt: str | list[Annotated[int, Meta(ge=0)]] | None = None
    messages: list[Message] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    seed: Annotated[int, Meta(ge=0)] = 0
    cache_salt: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None


def token_ids(ask: Ask, vocab_size: int) -> list[int]:
    """Raises BadRequest."""
    if ask.messages is not None:
        text = "".join(f"<|{m.role}|> {m.content or ''} <|end|> " for m in ask.messages)
        return _words(f"{text}<|assistant|>", vocab_size)
    if ask.prompt is None:
        raise BadRequest("neither prompt nor messages is given", "prompt")
    if isinstance(ask.prompt, str):
        return _words(ask.prompt, vocab_size)
    if max(ask.prompt, default=0) >= vocab_size:
        raise BadRequest(f"prompt: a token id is outside the vocabulary of {vocab_size}", "prompt")
    return ask.prompt


def _words(text: str, vocab_size: int) -> list[int]:
    return [_word(word, vocab_size) for word in _WORD.findall(text)]


def _word(word: str, vocab_size: int) -> int:
    if (spelt := _SPELT.match(word)) and int(spelt[1]) < vocab_size:
        return int(spelt[1])
    return xxhash.xxh64_intdigest(word.encode()) % vocab_size
