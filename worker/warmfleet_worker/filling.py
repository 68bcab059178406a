"""What becomes of a sequence's blocks when a step has finished: sealed when full, shared when forked."""

from array import array
from collections.abc import Callable

from warmfleet_proto.hashing import block_hash

from warmfleet_worker.engine.base import Copy
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import Sequence


def seal_filled(
    sequence: Sequence, cache: PrefixCache, release: Callable[[list[int]], None], block_size: int
) -> None:
    """Makes every block that is full by now readable.

    Where an equal block became readable first, the sequence goes on with that one and releases its own.
    """
    root = sequence.request.root
    while sequence.sealable and (sequence.sealed + 1) * block_size <= sequence.computed:
        index = sequence.sealed
        token_ids = sequence.token_ids[index * block_size : (index + 1) * block_size].tobytes()
        if index < len(sequence.hashes):
            hashed = sequence.hashes[index]
        else:
            hashed = block_hash(sequence.node.hash if sequence.node else root, token_ids)
        block = sequence.blocks[index]
        node = cache.seal(block, hashed, root, sequence.node, token_ids)
        if node is None:
            sequence.sealable = False
            return
        if node.block != block:
            cache.pin([node.block])
            release([block])
            sequence.replace_block(index, node.block)
        sequence.node = node
        sequence.sealed += 1


def fork(sequence: Sequence, cache: PrefixCache, block_size: int) -> list[Sequence]:
    """One sequence a choice once the prompt is computed: full blocks are shared, the partial tail is copied
    for each further choice into the block that was taken for it at admission."""
    first, *others = sequence.choices
    full = sequence.prompt_tokens // block_size
    partial = sequence.prompt_tokens % block_size != 0
    forks = [sequence]
    for choice, spare in zip(others, sequence.spares, strict=True):
        shared = sequence.blocks[:full]
        cache.pin(shared)
        child = Sequence(
            sequence.request,
            (choice,),
            array("I", sequence.token_ids),
            sequence.prompt_tokens,
            blocks=[*shared, spare],
            computed=sequence.computed,
            planned=sequence.computed,
            sealed=sequence.sealed,
            node=sequence.node,
            sealable=sequence.sealable,
            hashes=sequence.hashes,
        )
        if partial:
            child.copy = Copy(sequence.blocks[full], spare)
            cache.pin([child.copy.source])
        forks.append(child)
    sequence.choices = (first,)
    sequence.spares = []
    return forks
