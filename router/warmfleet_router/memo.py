"""What was made of texts seen before: token ids, hashes. Exact: the key is the whole text, under a salt.

A digest would do for speed, but xxh3 collides at will and a collision would serve someone else's
prompt. The salt is in the key because a hit is faster than a miss by what a tenant could measure.
"""

from collections import OrderedDict

_OVERHEAD = 300  # bytes an entry costs besides its text and what was made of it


class Memo:
    """Least recently used texts go first when ``max_bytes`` are exceeded; 0 remembers nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[bytes, str | bytes], bytes] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, salt: bytes, text: str | bytes) -> bytes | None:
        """What was put, or None."""
        made = self._entries.get((salt, text))
        if made is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end((salt, text))
        return made

    def put(self, salt: bytes, text: str | bytes, made: bytes) -> None:
        key = (salt, text)
        cost = _cost(key, made)
        if cost > self._max_bytes or key in self._entries:
            return
        self._entries[key] = made
        self.size_bytes += cost
        while self.size_bytes > self._max_bytes:
            old, gone = self._entries.popitem(last=False)
            self.size_bytes -= _cost(old, gone)

    def __len__(self) -> int:
        return len(self._entries)


def _cost(key: tuple[bytes, str | bytes], made: bytes) -> int:
    return key[1].__sizeof__() + len(made) + len(key[0]) + _OVERHEAD
