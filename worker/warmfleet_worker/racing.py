"""Computing the front of what is being fetched while the rest of it comes from its end, until they meet.

Prefill needs everything before a token, so it can run beside a transfer only where the two work from
opposite ends (Cake, Jin et al. 2024). It costs the engine what it computes: where others run, that has to
be worth it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from warmfleet_worker.flight import Flight
from warmfleet_worker.pace import Pace
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Sequence

WORTH = 2.0  # a second of an engine that others use, in seconds of one request's wait


class Rates(NamedTuple):
    """Of a flight: seconds to compute a block, and to bring one if that is known."""

    compute_s: float
    bring_s: float | None


def rates(flight: Flight, pace: Pace, block_size: int, now: float) -> Rates:
    """What has come tells more than what was expected."""
    compute_s = math.inf if pace.token_s is None else pace.token_s * block_size
    if flight.there:
        return Rates(compute_s, (now - flight.began) / flight.there)
    if flight.expected_s is not None:
        return Rates(compute_s, max(flight.expected_s, now - flight.began) / flight.pieces)
    return Rates(compute_s, pace.block_s.get(flight.fetch.source))


def begins(flight: Flight, pace: Pace, block_size: int, step_s: float, busy: bool, now: float) -> float:
    """When computing the front is worth it, unless more comes before: then at least ``step_s``, a whole step,
    of waiting is left; so much time has passed where nothing is known. Halving a wait R with a computation
    of C all in all saves R^2 / (R + C) and costs R C / (R + C) of the engine."""
    compute_s, bring_s = rates(flight, pace, block_size, now)
    needed_s = max(step_s, WORTH * flight.left * compute_s if busy else 0.0)
    if bring_s is None:
        return flight.began + needed_s
    if flight.left * bring_s >= needed_s:
        return now
    # It should be there soon. If nothing more comes it looks slower and slower.
    return flight.began + needed_s * max(flight.there, 1) / max(flight.left, 1) + flight.pieces * bring_s


def stretch(flight: Flight, sequence: Sequence, pace: Pace, block_size: int, now: float) -> int:
    """Tokens that the racer may compute in one step: to where the two will meet, a block at least; 0
    where steps under way have to finish before it can go on with what has come."""
    gap = max(flight.tail * block_size - sequence.planned, 0)
    compute_s, bring_s = rates(flight, pace, block_size, now)
    if bring_s is None or flight.over is not None or math.isinf(compute_s):
        return gap
    share = bring_s / (bring_s + compute_s) if bring_s else 0.0
    blocks = math.ceil(gap / block_size * share)
    return min(gap, max(blocks, 1) * block_size)


def adopt(
    sequence: Sequence,
    chain: list[Node],
    cache: PrefixCache,
    release: Callable[[list[int]], None],
    block_size: int,
) -> int:
    """The racer goes on with what has become readable beyond what it has computed; in tokens. No step that
    is under way computes any of it. One token is left to compute, and never written into a shared block."""
    most = min(len(chain), (len(sequence.token_ids) - 1) // block_size)
    if most <= sequence.sealed:
        return 0
    before = sequence.computed
    for index in range(sequence.sealed, most):
        cache.pin([chain[index].block])
        release([sequence.blocks[index]])
        sequence.replace_block(index, chain[index].block)
    sequence.sealed, sequence.node = most, chain[most - 1]
    sequence.computed = sequence.planned = max(before, most * block_size)
    return sequence.computed - before
