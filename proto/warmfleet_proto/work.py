"""What engine steps compute, in the sums that their seconds are linear in: ``Work`` of worker.proto."""

from collections.abc import Iterable
from operator import add, sub
from typing import NamedTuple


class Work(NamedTuple):
    """The work of one step, or of many together."""

    prompt_steps: int = 0
    prompt_tokens: int = 0
    prompt_pairs: int = 0
    decode_steps: int = 0
    decode_sequences: int = 0
    decode_context: int = 0

    def plus(self, other: "Work") -> "Work":
        return Work(*map(add, self, other))

    def less(self, other: "Work") -> "Work":
        return Work(*map(sub, self, other))


def work_of(parts: Iterable[tuple[int, int]]) -> Work:
    """The work of one step, given (tokens, context before them) of each of its sequences: one with a single
    token decodes."""
    tokens = pairs = sequences = context = 0
    for count, start in parts:
        if count > 1:
            tokens += count
            pairs += count * start + count * count // 2
        else:
            sequences += 1
            context += start
    return Work(bool(tokens), tokens, pairs, bool(sequences), sequences, context)
