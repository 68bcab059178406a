"""Token ids to text as they arrive; a character whose bytes are not complete waits for the rest."""

import codecs
from collections.abc import Iterable

from warmfleet_router.prompt.tokenizer import Tokenizer

_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One choice's completion. Special tokens, and ids outside the vocabulary, have no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._specials = tokenizer.specials
        self._decoder = _decoder(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; bytes that are no UTF-8 become U+FFFD."""
        table, specials = self._bytes, self._specials
        data = b"".join([table[i] for i in ids if i < len(table) and i not in specials])
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character cut short, else nothing."""
        return self._decoder.decode(b"", final=True)
