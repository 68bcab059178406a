"""Which models this gateway serves, and how much context their workers give."""

from collections.abc import Iterable

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.router_pb2 import ListWorkersResponse

_ABSENT = ("joining", "lost")


class Catalogue:
    """Served names and the contexts of their workers, which may differ: long prompts go to those with room.

    Every model whose vocabulary holds all of the tokenizer's ``vocab_size`` ids counts; or, when
    ``served_name`` is given, that one alone. Without a vocabulary (0) none counts.
    """

    def __init__(self, served_name: str, vocab_size: int) -> None:
        self._served_name = served_name
        self._vocab_size = vocab_size
        self._contexts: dict[str, list[int]] = {}  # the smallest first

    def update(self, fleet: ListWorkersResponse) -> None:
        """A model without workers stays: whether it can be had right now is the router's to say."""
        contexts: dict[str, list[int]] = {}
        for worker in fleet.workers:
            if worker.state in _ABSENT or self._served_name not in ("", worker.model):
                continue
            if 0 < self._vocab_size <= worker.vocab_size:
                contexts.setdefault(worker.model, []).append(worker.max_context)
        self._contexts |= {model: sorted(known) for model, known in contexts.items()}

    @property
    def ready(self) -> bool:
        return bool(self._contexts)

    def models(self) -> dict[str, int]:
        """Served name -> largest context in tokens."""
        return {model: contexts[-1] for model, contexts in self._contexts.items()}

    def context(self, model: str) -> int:
        """Tokens: the largest. Raises Rejected while no worker has joined, BadRequest (404) for a model that
        is not served."""
        if not self._contexts:
            raise Rejected("no worker has joined yet")
        if model not in self._contexts:
            raise not_served(model, self._contexts)
        return self._contexts[model][-1]

    def roomy(self, model: str, prompt_tokens: int) -> int:
        """Where a request does not say how long its answer may be: the smallest context that the prompt
        fills to half at most, else the largest. Not all of them must go to the largest workers."""
        largest = self.context(model)
        return next((c for c in self._contexts[model] if 2 * prompt_tokens <= c), largest)


def not_served(model: str, served: Iterable[str]) -> BadRequest:
    return BadRequest(f"model: {model!r} is not served here; {', '.join(served)} is", "model", 404)
