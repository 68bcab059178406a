"""Which models this gateway serves, and how much context their workers give."""

from collections.abc import Iterable

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.router_pb2 import ListWorkersResponse

_ABSENT = ("joining", "lost")


class Catalogue:
    """Served names and their contexts: the smallest among a model's workers.

    Every model whose vocabulary holds all of the tokenizer's ``vocab_size`` ids counts; or, when
    ``served_name`` is given, that one alone. Without a vocabulary (0) none counts.
    """

    def __init__(self, served_name: str, vocab_size: int) -> None:
        self._served_name = served_name
        self._vocab_size = vocab_size
        self._contexts: dict[str, int] = {}

    def update(self, fleet: ListWorkersResponse) -> None:
        """A model without workers stays: whether it can be had right now is the router's to say."""
        contexts: dict[str, int] = {}
        for worker in fleet.workers:
            if worker.state in _ABSENT or self._served_name not in ("", worker.model):
                continue
            if 0 < self._vocab_size <= worker.vocab_size:
                known = contexts.get(worker.model, worker.max_context)
                contexts[worker.model] = min(known, worker.max_context)
        self._contexts |= contexts

    @property
    def ready(self) -> bool:
        return bool(self._contexts)

    def models(self) -> dict[str, int]:
        """Served name -> context in tokens."""
        return dict(self._contexts)

    def context(self, model: str) -> int:
        """Tokens. Raises Rejected while no worker has joined, BadRequest (404) for a model not served."""
        if not self._contexts:
            raise Rejected("no worker has joined yet")
        if model not in self._contexts:
            raise not_served(model, self._contexts)
        return self._contexts[model]


def not_served(model: str, served: Iterable[str]) -> BadRequest:
    return BadRequest(f"model: {model!r} is not served here; {', '.join(served)} is", "model", 404)
