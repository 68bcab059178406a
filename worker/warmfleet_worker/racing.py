"""Computing the front of what is being fetched while the rest of it comes from its end, until they meet.

Prefill needs everything before a token, so it can run beside a transfer only where the two work from
opposite ends (Cake, Jin et al. 2024). It costs the engine what it computes: where others run, that has to
be worth it.
"""

import math
from collections.abc import Callable

from warmfleet_worker.flight import Flight
from warmfleet_worker.pace import Pace
from warmfleet_worker.prefix import Node, PrefixCache
from warmfleet_worker.sequence import Sequence

WORTH = 2.0  # a second of an engine that others use is worth so many seconds of one request's wait
PRIOR = 0.25  # until this share of a load has come, what was expected of its speed outweighs what is seen


def compute_s(pace: Pace, block_size: int) -> float:
    """Seconds to compute a block."""
    return math.inf if pace.token_s is None else pace.token_s * block_size


def usual_s(flight: Flight, pace: Pace) -> float | None:
    """Seconds that a block was expected to take; None if nothing came from that source before."""
    if flight.expected_s is not None:
        return flight.expected_s / flight.pieces
    return pace.block_s.get(flight.fetch.source)


def bring_s(flight: Flight, pace: Pace, now: float) -> float | None:
    """Seconds to bring a block; None while nothing is known.

    What was expected counts as if ``PRIOR`` of the whole had come at the expected rate. The first blocks
    alone say little: before they came, a lease and a connection were made and threads were woken. The more
    comes, and the longer nothing comes, the less the expectation counts: so a link that has become slow is
    noticed.
    """
    usual, passed_s = usual_s(flight, pace), now - flight.began
    if usual is None:
        return passed_s / flight.there if flight.there else None
    known = PRIOR * flight.pieces
    return (known * usual + passed_s) / (known + flight.there)


def begins(flight: Flight, pace: Pace, block_size: int, step_s: float, busy: bool) -> float:
    """From when on computing the front is worth it, if no more blocks come before: when, by ``bring_s``, the
    wait that is left is at least ``step_s``, the time of a whole step.

    Where others use the engine (``busy``): of a wait of R seconds, with a computation of C seconds in all,
    racing saves R^2 / (R + C) and costs R C / (R + C) of the engine: R has to be ``WORTH`` times C. If
    nothing is known about the source, as much time has to have passed, too: then waiting in vain costs no
    more than computing in vain would.
    """
    needed_s = max(step_s, WORTH * flight.left * compute_s(pace, block_size) if busy else 0.0)
    usual, left = usual_s(flight, pace), max(flight.left, 1)
    if usual is None:
        return flight.began + needed_s * max(1.0, flight.there / left)
    known = PRIOR * flight.pieces
    return flight.began + needed_s * (known + flight.there) / left - known * usual


def stretch(flight: Flight, sequence: Sequence, pace: Pace, block_size: int, now: float) -> int:
    """Tokens that the racer may compute in one step: up to where the two are expected to meet, a block at
    least. 0 if steps under way have to finish before it can go on with what has come."""
    gap = max(flight.tail * block_size - sequence.planned, 0)
    brings, computes = bring_s(flight, pace, now), compute_s(pace, block_size)
    if brings is None or flight.over is not None or math.isinf(computes):
        return gap
    share = brings / (brings + computes) if brings else 0.0
    blocks = math.ceil(gap / block_size * share)
    return min(gap, max(blocks, 1) * block_size)


def adopt(
    sequence: Sequence,
    chain: list[Node],
    cache: PrefixCache,
    release: Callable[[list[int]], None],
    block_size: int,
) -> int:
    """The racer takes over what has become readable beyond what it has computed; returns how many tokens. To
    be called when no step under way computes any of them. One token is left for it to compute, in a block of
    its own."""
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
