"""Bar 7 of issue 3: the hit rate that late and lost presence events cost, and the index made whole again."""

from warmfleet_router.replay.fleet import IDEAL, Fleet, Network
from warmfleet_router.replay.member import Member
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.report import summarise
from warmfleet_router.routing import Routing

from tests.bars.rows import Row
from tests.bars.traffic import BLOCK_S, conversation

DELAYS_S = (0.0, 0.1, 0.5, 2.0, 5.0)
LOSSES = (0.0, 0.01, 0.05, 0.2)
REQUESTS = 4000
SPEED = 4.5
HEALED_S = 2.0


def whole(fleet: Fleet, member: Member) -> bool:
    """Whether the index holds of a worker what the worker itself does, block by block."""
    roster = fleet.core.roster
    worker = roster.fleet.workers[member.address]
    group = roster.group_of(worker)
    assert group is not None
    truth = member.worker.cache.keys()
    held = group.index.held(worker.slot)
    believed = 0
    for key in truth:
        blocks, _ = group.index.leading(key.to_bytes(8, "little"), group.loads)
        believed += bool(blocks.get(worker.slot))
    return held == len(truth) == believed


def main() -> list[Row]:
    trace = conversation(REQUESTS)
    hits: dict[tuple[float, float], float] = {}
    healed = 0
    for delay in DELAYS_S:
        for loss in LOSSES:
            fleet = Fleet(Routing(), flat(BLOCK_S, 512), 512, [8000] * 8, network=Network(delay, loss))
            fleet.run(trace, SPEED)
            hits[delay, loss] = summarise("cheapest", fleet, trace.span_s / SPEED).hit
            fleet.rest(HEALED_S + delay, IDEAL)  # what was under way arrives
            healed += all(whole(fleet, member) for member in fleet.members)
        print(f"  events {delay:g} s late", *(f"{hits[delay, loss]:.4f}" for loss in LOSSES), flush=True)
    best = hits[0.0, 0.0]
    rows = [
        Row(
            "3.7",
            f"hit rate lost of {best:.4f}, events {delay:g} s late, lost "
            + ", ".join(f"{x:.0%}" for x in LOSSES),
            ", ".join(f"{best - hits[delay, loss]:+.4f}" for loss in LOSSES),
        )
        for delay in DELAYS_S
    ]
    runs = len(hits)
    what = f"indexes equal to the truth {HEALED_S:g} s after loss has ended (and what was late has come)"
    return [*rows, Row("3.7", what, f"{healed} of {runs} fleets", f"{runs}", healed == runs)]


if __name__ == "__main__":
    print(*main(), sep="\n")
