"""Names that stand for models: one, or several by weight, as for a canary.

A conversation keeps its model, so that its cache stays warm: its beginning chooses, the same at every
gateway. A model without a worker passes its conversations on, and gets them back.
"""

from collections.abc import Iterator, Mapping
from math import isfinite, log
from typing import Any

import msgspec
import xxhash
from msgspec import Raw, Struct
from warmfleet_proto.limits import MAX_ID_CHARS
from warmfleet_proto.router_pb2 import ListWorkersResponse
from warmfleet_proto.settings import ConfigError

from warmfleet_router.gateway import body as _body
from warmfleet_router.gateway.messages import NULL
from warmfleet_router.servers.ask import model_of

PROMPT_BYTES = 1024  # of a text completion, that choose
ABSENT = ("joining", "lost", "draining")  # states of a worker that takes nothing new

Setting = Mapping[str, str | dict[str, float]]


class _Message(Struct):
    role: Any = None


class _Begun(Struct):
    messages: list[Raw] = []
    prompt: Raw = NULL


_message = msgspec.json.Decoder(_Message)
_begun = msgspec.json.Decoder(_Begun)
_fields = msgspec.json.Decoder(dict[str, Raw])


class Aliases:
    def __init__(self, setting: Setting) -> None:
        self._shares = shares(setting)
        self._present: frozenset[str] = frozenset()

    def update(self, fleet: ListWorkersResponse) -> None:
        there = [worker for worker in fleet.workers if worker.state not in ABSENT]
        self._present = frozenset(model for worker in there for model in (worker.model, *worker.models))

    def resolved(self, body: bytes) -> bytes:
        """The body with a model in the place of an alias, nothing else touched. Raises BadRequest."""
        share = self._shares.get(model_of(body)) if self._shares else None
        if share is None:
            return body
        fields = _body.decode(body, _fields)
        _body.check_structure(body)
        present = {model: weight for model, weight in share.items() if model in self._present}
        model = chosen(present or share, _beginning(body))
        return msgspec.json.encode(fields | {"model": model})

    def models(self, served: Mapping[str, int]) -> dict[str, int]:
        """Aliases that can be had, with the context that every model behind them has."""
        contexts = {alias: [served[m] for m in share if m in served] for alias, share in self._shares.items()}
        return {alias: min(known) for alias, known in contexts.items() if known}


def shares(setting: Setting) -> dict[str, dict[str, float]]:
    """The weight of each model, by alias."""
    return {alias: {to: 1.0} if isinstance(to, str) else to for alias, to in setting.items()}


def chosen(weights: Mapping[str, float], beginning: bytes) -> str:
    """One of the models, each as often as its weight says. Without one of them only its own share moves."""
    return max(weights, key=lambda model: _score(model, weights[model], beginning))


def check(setting: Setting) -> None:
    """Raises ConfigError."""
    for alias, share in shares(setting).items():
        key = f"aliases.{alias}"
        if not 0 < len(alias) <= MAX_ID_CHARS:
            raise ConfigError(
                f"aliases: expected names of 1 to {MAX_ID_CHARS} characters, got {alias[:80]!r}"
            )
        if not share:
            raise ConfigError(f"{key}: expected a model, or weights of models")
        for model, weight in share.items():
            if not 0 < len(model) <= MAX_ID_CHARS:
                raise ConfigError(f"{key}: expected models of 1 to {MAX_ID_CHARS} characters")
            if not (isfinite(weight) and weight > 0):
                raise ConfigError(f"{key}.{model}: expected a weight above 0, got {weight}")
            if model in setting and model != alias:
                raise ConfigError(f"{key}: {model!r} is an alias itself")


def _score(model: str, weight: float, beginning: bytes) -> float:
    """Weighted rendezvous hashing."""
    digest = xxhash.xxh64_intdigest(beginning, xxhash.xxh64_intdigest(model.encode()))
    return -weight / log((digest + 1) / (2**64 + 2))


def _beginning(body: bytes) -> bytes:
    """What tells a conversation from others: of a chat all up to the first thing that its user says."""
    try:
        begun = _begun.decode(body)
        return b"\x1e".join(_first(begun.messages)) or bytes(begun.prompt)[:PROMPT_BYTES]
    except msgspec.DecodeError:
        return body[:PROMPT_BYTES]  # refused later, by a better message


def _first(messages: list[Raw]) -> Iterator[bytes]:
    for message in messages:
        yield bytes(message)
        if _message.decode(message).role == "user":
            return
