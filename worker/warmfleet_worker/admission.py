"""Whether a request fits a worker at all, and the blocks that a sequence takes when it starts to run."""

from collections.abc import Mapping
from typing import NamedTuple

from warmfleet_proto.errors import BadRequest

from warmfleet_worker.engine.base import Copy
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Sequence


class Limits(NamedTuple):
    """A scheduler's bounds. ``max_context`` is no larger than the pool."""

    block_size: int
    max_context: int  # prompt and completion tokens
    max_running: int  # sequences
    max_waiting: int
    chunk_tokens: int  # prompt tokens a step

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


def check_fits(prompt_tokens: int, choices: int, limits: Limits, total_blocks: int) -> None:
    """Raises BadRequest for what could never run here, however long it waited."""
    if prompt_tokens >= limits.max_context:
        raise BadRequest(
            f"the prompt has {prompt_tokens} tokens: it must be shorter than the context limit"
            f" of {limits.max_context} tokens",
            "prompt",
        )
    if choices > limits.max_running:
        raise BadRequest(f"choices is {choices}: this worker runs at most {limits.max_running}", "n")
    needed = limits.blocks(prompt_tokens + 1) + choices - 1
    if needed > total_blocks:
        raise BadRequest(
            f"prompt and choices need {needed} blocks: the pool holds {total_blocks}",
            "n" if choices > 1 else "prompt",
        )


def admit(sequence: Sequence, cache: PrefixCache, limits: Limits, room: int) -> bool:
    """Pins the longest readable prefix and takes blocks for the rest of the prompt, for one token more, and
    one for each further choice. ``room`` blocks are left for what runs already.

    False if there are too few; then nothing is taken.
    """
    nodes = readable(sequence, cache)
    if _take(sequence, nodes, cache, limits, room):
        return True
    whole = len(nodes) * limits.block_size == len(sequence.token_ids)
    # Nothing runs, so no block will be freed: the last block is computed instead of copied.
    return whole and room == 0 and _take(sequence, nodes[:-1], cache, limits, room)


def fits(sequence: Sequence, cache: PrefixCache, limits: Limits, room: int) -> bool:
    """Whether ``admit`` would find enough blocks."""
    return _fits(sequence, readable(sequence, cache), cache, limits, room)


def readable(sequence: Sequence, cache: PrefixCache) -> list[Node]:
    """The longest prefix that it may take from the cache."""
    request = sequence.request
    if request.bypasses:
        return []
    token_ids = sequence.token_ids.tobytes()
    sequence.matched = cache.match(request.root, sequence.hashes, token_ids, sequence.matched)
    return sequence.matched


def _take(sequence: Sequence, nodes: list[Node], cache: PrefixCache, limits: Limits, room: int) -> bool:
    """``nodes`` become the sequence's first blocks. At least one token is left to compute: if they hold all
    of the prompt, the last block is copied, since nothing is ever written into a shared block."""
    length = len(sequence.token_ids)
    whole = len(nodes) * limits.block_size == length
    shared = nodes[:-1] if whole else nodes
    needed = limits.blocks(length + 1) - len(shared)
    further = len(sequence.choices) - 1
    if not _fits(sequence, nodes, cache, limits, room):
        return False
    cache.pin([node.block for node in nodes])
    fresh = cache.allocate(needed + further)
    assert fresh is not None
    sequence.blocks = [*(node.block for node in shared), *fresh[:needed]]
    sequence.spares = fresh[needed:]
    sequence.sealed = len(shared)
    sequence.node = shared[-1] if shared else None
    sequence.computed = sequence.planned = length - 1 if whole else len(shared) * limits.block_size
    sequence.copy = Copy(nodes[-1].block, fresh[0]) if whole else None
    return True


def _fits(sequence: Sequence, nodes: list[Node], cache: PrefixCache, limits: Limits, room: int) -> bool:
    length = len(sequence.token_ids)
    shared = len(nodes) - (len(nodes) * limits.block_size == length)
    wanted = limits.blocks(length + 1) - shared + len(sequence.choices) - 1 + room
    if wanted <= cache.pool.free:  # a quick answer for the usual case
        return True
    return wanted <= cache.available_beside([node.block for node in nodes])


def uncached_tokens(sequence: Sequence, readable: int, coming: Mapping[bytes, int], block_size: int) -> int:
    """How much of the prompt seems to need computing: what is not among its ``readable`` leading blocks and
    is not in the prompt of any request before it (``coming``: hashes of their blocks, counted)."""
    if sequence.request.bypasses:
        return sequence.prompt_tokens
    while readable < len(sequence.hashes) and sequence.hashes[readable] in coming:
        readable += 1
    return max(sequence.prompt_tokens - readable * block_size, 1)
