"""What can befall the copy of a block that lies somewhere."""

import random
from collections.abc import Sequence

SPOILS = ("flip", "truncate", "swap", "replay")


def spoilt(how: str, copies: Sequence[bytes], i: int, rng: random.Random) -> bytes:
    """What lies where ``copies[i]`` should: of an even number of copies, none like another."""
    own, other = copies[i], copies[i ^ 1]
    if how == "flip":
        at = rng.randrange(8 * len(own))
        return bytes(b ^ (1 << at % 8 if n == at // 8 else 0) for n, b in enumerate(own))
    if how == "truncate":
        cut = rng.randrange(len(own))
        return own[:cut] + bytes(len(own) - cut)
    return other if how == "swap" else copies[0] if i else copies[1]
