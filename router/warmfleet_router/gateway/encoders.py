"""Which tokenizer and template make the prompts of which model."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from warmfleet_router.gateway.catalogue import Vocabulary
from warmfleet_router.prompt.encoder import PromptEncoder


class Encoders(NamedTuple):
    """``own``: of the router's own model, which was ``given`` or is the demo's; the others by model."""

    own: PromptEncoder
    given: bool
    named: Mapping[str, PromptEncoder]  # for our own workers ...
    relayed: Mapping[str, PromptEncoder]  # ... and for servers, to whom a special token that is typed is one

    def of(self, model: str) -> PromptEncoder:
        """The encoder for our own workers that serve ``model``."""
        return self.named.get(model, self.own)

    def each(self) -> Iterator[PromptEncoder]:
        yield self.own
        yield from self.named.values()
        yield from self.relayed.values()

    @property
    def vocabulary(self) -> Vocabulary:
        tokenizer = self.own.tokenizer
        return Vocabulary(tokenizer.vocab_size, tokenizer.model_vocab_size, self.given)

    def vocab_sizes(self) -> dict[str, int]:
        """Sizes of the vocabularies of tokenizers that are configured by the name of their model."""
        return {model: encoder.tokenizer.vocab_size for model, encoder in self.named.items()}
