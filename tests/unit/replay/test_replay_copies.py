"""Copies ahead of requests in a modelled fleet: what they are worth; what is saved of a worker that goes."""

from array import array
from random import Random

import msgspec
from warmfleet_router.replay import report
from warmfleet_router.replay.fleet import Fleet, Outcome
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import Routing

BLOCK = 512
BLOCKS = 2000
LINKED = msgspec.structs.replace(flat(0.1, BLOCK), link_bytes_per_s=12.5e9)
GOES_S = 60.0


def turns(requests: int, per_s: float) -> Trace:
    """Eight conversations, forty blocks long when they begin."""
    random, made, now = Random(1), [], 0.0
    histories = [[1000 * c + i for i in range(40)] for c in range(8)]
    for number in range(requests):
        now += random.expovariate(per_s)
        history = random.choice(histories)
        history += [100_000 + 10 * number + i for i in range(2)]
        made.append(Request(now, array("Q", history), len(history) * BLOCK + 1, 1))
    return Trace("turns", BLOCK, made)


def hubs(requests: int, per_s: float) -> Trace:
    """Eight long prefixes, the first of them in most demand, each request with two blocks of its own."""
    random, made, now = Random(1), [], 0.0
    prefixes = [[1000 * c + i for i in range(40)] for c in range(8)]
    for number in range(requests):
        now += random.expovariate(per_s)
        prefix = random.choices(prefixes, [1 / (c + 1) for c in range(8)])[0]
        keys = array("Q", [*prefix, *(100_000 + 10 * number + i for i in range(2))])
        made.append(Request(now, keys, len(keys) * BLOCK + 1, 1))
    return Trace("hubs", BLOCK, made)


def played(trace: Trace, *, leaves: bool = False, **routing: object) -> tuple[Fleet, report.Row]:
    fleet = Fleet(Routing(pulls=False, **routing), LINKED, BLOCK, [BLOCKS] * 4)  # type: ignore[arg-type]
    if leaves:
        fleet.drain(0, GOES_S, 20.0)
    fleet.run(trace)
    return fleet, report.summarise("p", fleet, trace.span_s)


def test_copies_shorten_the_wait_and_leave_nothing_pinned() -> None:
    trace = hubs(600, 8.0)
    _, without = played(trace, replicate=False)
    fleet, copied = played(trace)
    assert copied.ttft_mean < 0.9 * without.ttft_mean
    assert 0 < fleet.core.counters.replications < 30, "the few that are hot"
    assert copied.pulled_blocks >= 40
    assert all(m.worker.cache.available == BLOCKS for m in fleet.members)
    assert without.finished == copied.finished == 600


def test_conversations_of_a_worker_that_goes_are_found_warm_elsewhere() -> None:
    """Without copies in advance: the budget of a second is a byte."""
    trace = turns(600, 4.0)

    def after(**routing: object) -> list[Outcome]:
        fleet, _ = played(trace, leaves=True, replicate_bytes_per_s=1.0, **routing)
        assert not any(o.worker == 0 for o in fleet.outcomes if o.arrival_s > GOES_S)
        return [o for o in fleet.outcomes if o.arrival_s > GOES_S]

    lost, saved = after(evacuate_bytes=0.0), after()
    cold = [o for o in lost if o.cached_tokens < 40 * BLOCK]
    assert len(cold) > 0, "each of its conversations is computed again"
    assert not [o for o in saved if o.cached_tokens < 40 * BLOCK]
    assert max(o.ttft_s for o in saved) < max(o.ttft_s for o in lost)
