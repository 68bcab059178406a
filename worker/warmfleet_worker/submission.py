"""A Submit and its prompt frames, checked and made into a Request."""

import math

import numpy as np
from warmfleet_proto import limits
from warmfleet_proto.channel import split_address
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.transfer_pb2 import Pull as WirePull
from warmfleet_proto.worker_pb2 import Sampling as WireSampling
from warmfleet_proto.worker_pb2 import Submit

from warmfleet_worker.admission import Limits, check_fits
from warmfleet_worker.engine.base import Engine, Sampling
from warmfleet_worker.sequence import Key, Params, Request
from warmfleet_worker.transfer.pull import Pull

_SCORE_BYTES = 16  # a TokenLogprobs without alternatives, on the wire
_ALTERNATIVE_BYTES = 8


class Submission:
    """One request on its way in. Every method raises BadRequest, naming the field."""

    def __init__(self, submit: Submit, engine: Engine, bounds: Limits) -> None:
        _check_size("request_id", len(submit.request_id), limits.MAX_ID_CHARS)
        _check_size("salt", len(submit.salt), limits.MAX_SALT_BYTES)
        if not submit.prompt_tokens:
            raise BadRequest("prompt_tokens is 0: a prompt has at least one token", "prompt_tokens")
        _check_size("prompt_tokens", submit.prompt_tokens, limits.PROMPT_BYTES // TOKEN_BYTES)
        if not (math.isfinite(submit.deadline_s) and submit.deadline_s >= 0):
            raise BadRequest("deadline_s must be a number of seconds, or 0 for none", "deadline_s")
        self.params = params(submit.sampling)
        check_fits(submit.prompt_tokens, self.params.choices, bounds, engine.total_blocks)
        _check_scores(submit)
        self._pull = None
        if submit.HasField("pull"):
            self._pull = pull_of(submit.pull, submit.prompt_tokens, engine.block_size)
        self._submit = submit
        self._engine = engine
        self._size = submit.prompt_tokens * TOKEN_BYTES
        self._prompt = bytearray()
        self.add(submit.token_ids)

    @property
    def complete(self) -> bool:
        return len(self._prompt) == self._size

    @property
    def size(self) -> int:
        """Bytes of the whole prompt."""
        return self._size

    def add(self, token_ids: bytes) -> None:
        """The next part of the prompt."""
        if len(token_ids) % TOKEN_BYTES:
            raise BadRequest(f"token_ids has {len(token_ids)} bytes: not a multiple of 4", "token_ids")
        _check_size("token_ids", len(token_ids), limits.FRAME_BYTES)
        if len(self._prompt) + len(token_ids) > self._size:
            raise BadRequest(
                f"token_ids: more than the {self._submit.prompt_tokens} tokens of prompt_tokens", "token_ids"
            )
        if token_ids and (largest := int(np.frombuffer(token_ids, "<u4").max())) >= self._engine.vocab_size:
            raise BadRequest(
                f"token_ids: {largest} is outside the vocabulary of {self._engine.vocab_size}", "token_ids"
            )
        self._prompt += token_ids

    def request(self, gateway: str, now: float) -> Request:
        """Once complete."""
        assert self.complete
        submit, engine = self._submit, self._engine
        root = root_hash(engine.fingerprint, engine.block_size, salt=submit.salt)
        prompt = bytes(self._prompt)
        return Request(
            Key(gateway, submit.handle),
            submit.request_id,
            root,
            prompt,
            chain(root, prompt, engine.block_size),
            self.params,
            submitted=now,
            deadline=now + submit.deadline_s if submit.deadline_s else None,
            booking=submit.booking,
            pull=self._pull,
        )


def params(wire: WireSampling) -> Params:
    _check_range("temperature", wire.temperature, math.inf)
    _check_range("top_p", wire.top_p, 1)
    _check_range("min_p", wire.min_p, 1)
    if not wire.stop_ids:
        stop_ids = frozenset[int]()
    elif len(wire.stop_ids) % TOKEN_BYTES:
        raise BadRequest(f"stop_ids has {len(wire.stop_ids)} bytes: not a multiple of 4", "stop_ids")
    else:
        _check_size("stop_ids", len(wire.stop_ids) // TOKEN_BYTES, limits.MAX_STOP_IDS)
        stop_ids = frozenset(np.frombuffer(wire.stop_ids, "<u4").tolist())
    _check_size("choices", wire.choices, limits.MAX_CHOICES)
    _check_size("logprobs", wire.logprobs, limits.MAX_LOGPROBS)
    _check_size("prompt_logprobs", wire.prompt_logprobs, limits.MAX_LOGPROBS)
    sampling = Sampling(
        temperature=wire.temperature,
        top_p=wire.top_p or 1.0,
        top_k=wire.top_k,
        min_p=wire.min_p,
        seed=wire.seed,
        logprobs=wire.logprobs if wire.HasField("logprobs") else None,
    )
    return Params(
        sampling,
        wire.max_tokens,
        wire.choices or 1,
        frozenset() if wire.ignore_eos else stop_ids,
        wire.prompt_logprobs if wire.HasField("prompt_logprobs") else None,
        wire.drawn,
    )


def pull_of(wire: WirePull, prompt_tokens: int, block_size: int) -> Pull:
    """A run of whole blocks of a prompt; what the grant says is the source's to judge. Raises BadRequest."""
    _check_size("pull.source", len(wire.source), limits.MAX_ID_CHARS)
    _check_size("pull.grant", len(wire.grant.claims), limits.GRANT_BYTES)
    if wire.from_tokens % block_size or wire.tokens % block_size:
        raise BadRequest(f"pull: {wire.from_tokens} and {wire.tokens} tokens are not whole blocks", "pull")
    if wire.from_tokens + wire.tokens > prompt_tokens:
        raise BadRequest("pull: more tokens than the prompt has", "pull")
    for field, seconds in (("pull.within_s", wire.within_s), ("pull.seconds", wire.seconds)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise BadRequest(f"{field} must be a number of seconds", field)
    try:
        split_address(wire.address)
    except ConfigError as error:
        raise BadRequest(f"pull.address: {error}", "pull.address") from None
    first, blocks = wire.from_tokens // block_size, wire.tokens // block_size
    return Pull(wire.source, wire.address, first, blocks, wire.within_s, wire.grant, wire.seconds)


def _check_size(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise BadRequest(f"{field}: {value} exceeds the limit of {limit}", field)


def _check_range(field: str, value: float, limit: float) -> None:
    if not 0 <= value <= limit or math.isinf(value):
        raise BadRequest(f"{field} is {value}: expected 0 to {limit}", field)


def _check_scores(submit: Submit) -> None:
    """All of a prompt's logprobs travel in one message."""
    if submit.sampling.HasField("prompt_logprobs"):
        each = _SCORE_BYTES + _ALTERNATIVE_BYTES * submit.sampling.prompt_logprobs
        most = limits.MESSAGE_BYTES // 2 // each
        if submit.prompt_tokens > most:
            raise BadRequest(
                f"prompt_logprobs: a prompt of {submit.prompt_tokens} tokens exceeds the limit of {most}"
                " for so many alternatives",
                "prompt_logprobs",
            )
