"""Log-probabilities of tokens with the texts that OpenAI's answers show beside them."""

from typing import NamedTuple


class Scored(NamedTuple):
    """A token as text, as bytes (a token may be part of a character) and its log-probability."""

    text: str
    data: bytes
    logprob: float | None  # None: the first token of a prompt, which nothing predicts


class Score(NamedTuple):
    """One position: the token that stands there and the likeliest alternatives, best first."""

    token: Scored
    top: tuple[Scored, ...] = ()
