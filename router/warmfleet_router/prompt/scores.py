"""Log-probabilities of tokens with the texts that OpenAI's answers show beside them."""

from collections.abc import Sequence
from typing import NamedTuple

from warmfleet_router.prompt import ids


class Scored(NamedTuple):
    """A token as text, as bytes (a token may be part of a character) and its log-probability."""

    text: str
    data: bytes
    logprob: float | None  # None: the first token of a prompt, which nothing predicts


class Score(NamedTuple):
    """One position: the token that stands there and the likeliest alternatives, best first."""

    token: Scored
    top: tuple[Scored, ...] = ()


def scored(token_bytes: Sequence[bytes], token_id: int, logprob: float | None) -> Scored:
    """``token_bytes``: a Tokenizer's. An id outside the vocabulary has no text."""
    data = token_bytes[token_id] if token_id < len(token_bytes) else b""
    return Scored(data.decode(errors="replace"), data, logprob)


def score(
    token_bytes: Sequence[bytes],
    token_id: int,
    logprob: float | None,
    top_ids: bytes = b"",
    top_logprobs: Sequence[float] = (),
) -> Score:
    """``top_ids`` packed, as in a worker's TokenLogprobs."""
    top = zip(ids.unpack(top_ids), top_logprobs, strict=False)  # as many as the worker gave of both
    return Score(scored(token_bytes, token_id, logprob), tuple(scored(token_bytes, i, p) for i, p in top))
