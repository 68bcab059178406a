"""What answers were, as far as the prompts that went on from them show: logs tell no token of them. Pure."""

from array import array
from bisect import bisect
from collections.abc import Sequence

from warmfleet_router.replay.trace import Request


def with_answers(requests: Sequence[Request], available: Sequence[int], block_size: int) -> list[Request]:
    """The same, each with the keys of the blocks that its answer filled where a later prompt goes on from
    it: what some worker held of that prompt (``available`` tokens) although no prompt before had it."""
    found = list(requests)
    seen: set[int] = set()  # keys of prompts so far
    last: dict[int, int] = {}  # requests, by the last key of their prompts
    for number, (request, tokens) in enumerate(zip(requests, available, strict=True)):
        known = _leading(request.keys, seen)
        before = last.get(request.keys[known - 1]) if known else None
        if before is not None:
            whole = found[before].prompt_tokens + found[before].completion_tokens
            answer = request.keys[known : min(tokens, whole) // block_size]
            if answer:
                found[before] = found[before]._replace(answer=answer)
        if request.keys:
            seen.update(request.keys)
            last[request.keys[-1]] = number
    return found


def _leading(keys: "array[int]", seen: set[int]) -> int:
    """How many of the keys, each of which names all before it, have been seen."""
    return bisect(range(len(keys)), False, key=lambda at: keys[at] not in seen)
