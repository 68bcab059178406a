"""What an engine says of its KV blocks, whichever engine and release it is."""

from collections.abc import Sequence
from typing import NamedTuple


class Stored(NamedTuple):
    """A run of one chain has become readable in a tier.

    ``hashes`` are the engine's own names of the blocks, as unsigned 64-bit numbers; without
    ``token_ids`` they name blocks that were told of before.
    """

    tier: int
    hashes: Sequence[int]
    parent: int | None  # None: the first block begins a prompt
    token_ids: Sequence[int]
    block_size: int  # tokens
    adapter: str
    salt: str  # of the prompt that the first block begins
    extras: Sequence[bytes]  # whatever else the meaning of each block depends on; empty: nothing does


class Removed(NamedTuple):
    """One copy of each block is gone; ``copies``: how many are left, where the engine says so."""

    tier: int
    hashes: Sequence[int]
    copies: Sequence[int] | None


class Cleared(NamedTuple):
    """Nothing is left, in any tier."""


Event = Stored | Removed | Cleared


class Batch(NamedTuple):
    rank: int | None  # of the data-parallel replica; None: it does not say
    events: Sequence[Event]
    ignored: int  # events about something else: other media, other kinds of attention, unknown types
