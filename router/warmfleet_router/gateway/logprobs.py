"""Log-probabilities in the two shapes that OpenAI gives them."""

from collections.abc import Sequence
from typing import Any

from warmfleet_router.prompt.scores import Score, Scored

_LEAST = -9999.0  # JSON has no -inf; OpenAI's own stand-in


def chat_logprobs(scores: Sequence[Score]) -> dict[str, Any]:
    content = [
        {**_entry(s.token), "top_logprobs": [_entry(alternative) for alternative in s.top]} for s in scores
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(scores: Sequence[Score], offset: int = 0) -> dict[str, Any]:
    """``offset``: characters of the tokens before the first score."""
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(score.token.text)
    return {
        "tokens": [s.token.text for s in scores],
        "token_logprobs": [_finite(s.token.logprob) for s in scores],
        "top_logprobs": [_alternatives(score) for score in scores],
        "text_offset": offsets,
    }


def _alternatives(score: Score) -> dict[str, float | None] | None:
    if score.token.logprob is None:
        return None
    return {other.text: _finite(other.logprob) for other in score.top}


def _entry(token: Scored) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.data)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)
