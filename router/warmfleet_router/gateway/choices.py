"""A choice on its way from token ids to text: cut at stop strings, scored when asked."""

from collections.abc import Sequence, Sized

from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.worker_pb2 import Ending, Output, TokenLogprobs

from warmfleet_router.prompt import ids
from warmfleet_router.prompt.detokenizer import Detokenizer
from warmfleet_router.prompt.scores import Score, Scored
from warmfleet_router.prompt.stops import StopScanner
from warmfleet_router.prompt.tokenizer import Tokenizer


class ChoiceText:
    """One choice. ``finish_reason`` is empty until it has ended; what arrives after that is ignored."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], scored: bool) -> None:
        self.tokens = 0
        self.finish_reason = ""  # then stop or length
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopScanner(stops)
        self._scored = scored

    def push(self, output: Output) -> tuple[str, list[Score] | None]:
        """The text to send now, and the scores of the output's tokens. Raises WorkerLost: it is malformed."""
        if self.finish_reason:
            return "", None
        token_ids = _unpacked(output.token_ids)
        self.tokens += len(token_ids)
        text, stopped = self._stops.push(self._detokenizer.push(token_ids))
        if not stopped and output.HasField("ending"):
            tail, stopped = self._stops.push(self._detokenizer.flush())
            text += tail if stopped else tail + self._stops.flush()
            self.finish_reason = "length" if output.ending.reason == Ending.LENGTH else "stop"
        if stopped:
            self.finish_reason = "stop"
        return text, scores(self._tokenizer, token_ids, output.logprobs) if self._scored else None


def scores(tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> list[Score]:
    """One a token. Raises WorkerLost where the worker's counts differ."""
    _same_length("tokens", token_ids, "log-probabilities", logprobs)
    return [
        Score(_scored(tokenizer, token_id, entry.logprob), _alternatives(tokenizer, entry))
        for token_id, entry in zip(token_ids, logprobs, strict=True)
    ]


def prompt_scores(tokenizer: Tokenizer, token_ids: bytes, logprobs: Sequence[TokenLogprobs]) -> list[Score]:
    """Scores of every prompt token; the first has none, since nothing predicts it. Raises WorkerLost like
    ``scores``."""
    unpacked = ids.unpack(token_ids)
    return [Score(_scored(tokenizer, unpacked[0], None)), *scores(tokenizer, unpacked[1:], logprobs)]


def _alternatives(tokenizer: Tokenizer, entry: TokenLogprobs) -> tuple[Scored, ...]:
    top_ids, logprobs = _unpacked(entry.top_ids), entry.top_logprobs
    _same_length("alternatives", top_ids, "log-probabilities of them", logprobs)
    return tuple(_scored(tokenizer, i, logprob) for i, logprob in zip(top_ids, logprobs, strict=True))


def _unpacked(packed: bytes) -> Sequence[int]:
    """Token ids that a worker sent."""
    if len(packed) % TOKEN_BYTES:
        raise WorkerLost(f"worker answered {len(packed)} bytes of token ids, not a multiple of {TOKEN_BYTES}")
    return ids.unpack(packed)


def _same_length(what: str, some: Sized, of_them: str, others: Sized) -> None:
    if len(some) != len(others):
        raise WorkerLost(f"worker answered {len(some)} {what} with {len(others)} {of_them}")


def _scored(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> Scored:
    table = tokenizer.token_bytes
    data = table[token_id] if token_id < len(table) else b""
    return Scored(data.decode(errors="replace"), data, logprob)
