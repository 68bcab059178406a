"""What every token id stands for, in bytes."""

import re

from tokenizers import Tokenizer, decoders, pre_tokenizers
from warmfleet_proto.settings import ConfigError

from warmfleet_router.prompt.byte_level import BYTE_OF

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def check_segments(fast: Tokenizer) -> None:
    """Raises ConfigError where a prompt's first text is encoded unlike those behind a special token."""
    pre = fast.pre_tokenizer
    if isinstance(pre, pre_tokenizers.Metaspace) and pre.prepend_scheme == "first":
        raise ConfigError("tokenizer.json: Metaspace with prepend_scheme first is not supported")


def token_bytes(fast: Tokenizer) -> list[bytes]:
    """Token id -> its bytes; concatenated they are the text. Holes in the vocabulary are b"".

    Raises ConfigError for a decoder that is neither byte-level nor SentencePiece's.
    """
    if isinstance(fast.decoder, decoders.ByteLevel):
        spell = _byte_level
    elif isinstance(fast.decoder, decoders.Sequence | decoders.Metaspace):
        spell = _sentence_piece
    else:
        raise ConfigError(f"tokenizer.json: decoder {type(fast.decoder).__name__} is not supported")
    added = fast.get_added_tokens_decoder()
    vocabulary = fast.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        table[token_id] = token.encode() if token_id in added else spell(token)
    return table


def _byte_level(token: str) -> bytes:
    try:
        return bytes([BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()  # not spelt in bytes: stands for itself


def _sentence_piece(token: str) -> bytes:
    if byte := _FALLBACK.fullmatch(token):
        return bytes.fromhex(byte.group(1))
    return token.replace("▁", " ").encode()
