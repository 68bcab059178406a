"""Telling the special tokens that a chat template writes from those that someone typed.

Before rendering, every special token in a caller's string is broken by a mark behind its first
character; the template's own stay whole. The rendered prompt is split at whole ones, and the marks
are taken out of the text between them. Marks are Unicode noncharacters; a typed one is escaped.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken
from warmfleet_proto.settings import ConfigError

from warmfleet_router.prompt import ids

_MARK, _ESCAPE = "\ufdd0", "\ufdd1"
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Masking:
    def __init__(self, specials: Mapping[int, AddedToken]) -> None:
        """Raises ConfigError for a special token of fewer than two characters, which cannot be broken."""
        texts = [token.content for token in specials.values()]
        if short := [text for text in texts if len(text) < 2]:
            raise ConfigError(f"special token {short[0]!r} is too short")
        # Half a token may meet its other half in the rendered prompt.
        heads = {text[:end] for text in texts for end in range(1, len(text))}
        tails = {text[start:] for text in texts for start in range(1, len(text))}
        self._opening = re.compile(rf"{_any_of(texts)}|{_any_of(heads)}\Z")
        self._closing = re.compile(_any_of(tails))
        self._splitter = re.compile(f"({_any_of(texts)})")
        self._packed = {token.content: ids.pack((i,)) for i, token in specials.items()}
        self._greedy = {t.content: t for t in specials.values() if t.lstrip or t.rstrip}

    def mask(self, value: Any) -> Any:
        """A copy of JSON-like ``value`` in which no string holds, begins or ends a special token."""
        if isinstance(value, str):
            return self._mask(value)
        if isinstance(value, dict):
            return {self._mask(key): self.mask(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mask(item) for item in value]
        return value

    def split(self, rendered: str) -> list[str | bytes]:
        """Texts, unmasked and not empty, and packed ids of the special tokens between them, in order."""
        parts: list[str] = self._splitter.split(rendered)
        if _MARK in rendered or _ESCAPE in rendered:
            parts[::2] = map(_unmask, parts[::2])
        if self._greedy:
            self._swallow_spaces(parts)
        pieces: list[str | bytes] = list(parts)
        pieces[1::2] = [self._packed[part] for part in parts[1::2]]
        return [piece for piece in pieces if piece]

    def _swallow_spaces(self, parts: list[str]) -> None:
        # As tokenizers does for tokens that say so; not by pattern, which would be quadratic in spaces.
        for at in range(1, len(parts), 2):
            if token := self._greedy.get(parts[at]):
                if token.lstrip:
                    parts[at - 1] = parts[at - 1].rstrip(_SPACES)
                if token.rstrip:
                    parts[at + 1] = parts[at + 1].lstrip(_SPACES)

    def _mask(self, text: str) -> str:
        if _MARK in text or _ESCAPE in text:
            text = text.replace(_ESCAPE, _ESCAPE + "1").replace(_MARK, _ESCAPE + "0")
        if self._opening.search(text):
            text = self._broken(text)
        return _MARK + text if self._closing.match(text) else text

    def _broken(self, text: str) -> str:
        pieces: list[str] = []
        at = 0
        while match := self._opening.search(text, at):  # overlapping ones too
            start = match.start() + 1
            pieces += (text[at:start], _MARK)
            at = start
        return "".join((*pieces, text[at:]))


def _unmask(text: str) -> str:
    text = text.replace(_MARK, "")
    if _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE + "0", _MARK).replace(_ESCAPE + "1", _ESCAPE)


def _any_of(words: Iterable[str]) -> str:
    """A pattern that matches the longest of ``words``, as a trie: 250 alternatives cost 100x in a row."""
    tails: dict[str, list[str]] = {}
    for word in words:
        if word:
            tails.setdefault(word[0], []).append(word[1:])
    if not tails:
        return "(?!)"
    branches = [re.escape(head) + _rest(rest) for head, rest in tails.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _rest(tails: list[str]) -> str:
    longer = [tail for tail in tails if tail]
    if not longer:
        return ""
    pattern = _any_of(longer)
    return pattern if len(longer) == len(tails) else f"(?:{pattern})?"
