"""Which models this gateway serves, and how much context their workers give."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.router_pb2 import ListWorkersResponse, WorkerView

from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.placing import is_server

_ABSENT = ("joining", "lost")


class Vocabulary(NamedTuple):
    """How large the vocabulary of the router's own tokenizer is."""

    tokens: int  # 0: there is none
    model: int = 0  # rows of its model, which may have more than the tokenizer has ids; 0: not known
    given: bool = True  # somebody has said that it is the workers'


class Catalogue:
    """Served names and the contexts of their workers, which may differ: long prompts go to those with room.

    A model counts if prompts can be made for it: by a tokenizer of its own (``named``: the ids of each, by
    model), or by the router's. That one is ``served_name``'s where this is given; else theirs whose
    vocabulary is its own, or the only model's that there is or was: vocabularies are padded. Another model
    would read the ids as other words.
    """

    def __init__(self, served_name: str, own: Vocabulary, named: Mapping[str, int] | None = None) -> None:
        self._served_name = served_name
        self._own = own
        self._named = named or {}
        self._contexts: dict[str, list[int]] = {}  # the smallest first
        self._refused: dict[str, str] = {}  # why
        self._awaited = False  # some of our own workers have not said yet what they serve
        self._taken: dict[str, set[int]] = {}  # vocabularies of those that were served at the last look

    def update(self, fleet: ListWorkersResponse) -> dict[str, str]:
        """The models that are refused from now on, and why. A model without workers stays: whether it can be
        had right now is the router's to say."""
        models: dict[str, list[WorkerView]] = {}
        for worker in fleet.workers:
            if worker.state != "joining" and worker.vocab_size:  # servers that are not ours tell none
                models.setdefault(worker.model, []).append(worker)
        sizes = {model: {worker.vocab_size for worker in workers} for model, workers in models.items()}
        self._awaited = any(w.state == "joining" and not is_server(w.address) for w in fleet.workers)
        right = self._right(sizes)
        self._taken = {model: sizes[model] for model in right}
        known, self._refused = self._refused, {m: self._why(m, sizes[m]) for m in sizes if m not in right}
        for model, workers in models.items():
            contexts = sorted(worker.max_context for worker in workers if worker.state not in _ABSENT)
            if model not in right:
                self._contexts.pop(model, None)
            elif contexts:
                self._contexts[model] = contexts
        return {model: why for model, why in self._refused.items() if model not in known}

    def _right(self, sizes: Mapping[str, set[int]]) -> set[str]:
        """The models whose tokenizer is here, of all that own workers have."""
        named = {model for model in sizes if self._named.get(model, 0) > 0}
        fitting = {model for model in named if self._named[model] <= min(sizes[model])}
        rest, own = sizes.keys() - named, self._own
        if self._served_name:
            rest &= {self._served_name}
        fits = {model for model in rest if 0 < own.tokens <= min(sizes[model])}
        if self._served_name:
            return fitting | fits
        equal = {model for model in fits if sizes[model] <= {own.tokens, own.model}}
        alone = own.given and len(rest) == 1
        before = {model for model in fits if self._taken.get(model) == sizes[model]}
        return fitting | (equal or (fits if alone else before))

    def _why(self, model: str, sizes: set[int]) -> str:
        rows = " and ".join(map(str, sorted(sizes)))
        if model in self._named:
            return f"tokenizers.{model} has {self._named[model]} ids, the workers of the model {rows}"
        if self._served_name not in ("", model):
            return f"it is not served_name, and tokenizers.{model} is not set"
        if not self._own.tokens:
            return f"there is no tokenizer here; set model or tokenizers.{model}"
        return f"its workers have {rows} ids, the tokenizer here {self._own.tokens}; set tokenizers.{model}"

    @property
    def ready(self) -> bool:
        return bool(self._contexts)

    def models(self) -> dict[str, int]:
        """Served name -> largest context in tokens."""
        return {model: contexts[-1] for model, contexts in self._contexts.items()}

    def beside(self, theirs: dict[str, int], aliases: Aliases) -> dict[str, int]:
        """All names that clients may use, those of servers' models (``theirs``) among them, with contexts."""
        ours = self.models()
        served = {model: max(ours.get(model, 0), theirs.get(model, 0)) for model in ours | theirs}
        return served | aliases.models(served)

    def check(self, model: str, theirs: dict[str, int], aliases: Aliases) -> None:
        """Beside servers a name that nobody has is the client's mistake, whatever else its body says: our own
        workers' fields are not all that there are. Raises BadRequest (404), and Rejected while the first of
        our own workers is waited for: it may be its name."""
        if model and theirs and not (model in self._contexts or model in self._refused):
            if self._awaited and not self._contexts:
                raise Rejected("no worker has joined yet")
            raise not_served(model, self.beside(theirs, aliases))

    def context(self, model: str) -> int:
        """Tokens: the largest. Raises Rejected while no worker has joined, BadRequest (404) for a model that
        is not served."""
        if model in self._refused:
            raise BadRequest(f"model: {model!r} is not served here: {self._refused[model]}", "model", 404)
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
