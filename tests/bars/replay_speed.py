"""Bar 8 of issue 3: what the replay itself takes, in CPU seconds of one core."""

import time

from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Trace
from warmfleet_router.routing import Routing

from tests.bars.rows import Row
from tests.bars.traffic import BLOCK_S, conversation, lengthened


def cpu_s(trace: Trace, workers: int, speed: float) -> float:
    began = time.process_time()
    fleet = Fleet(Routing(), flat(BLOCK_S, 512), 512, [8000] * workers)
    fleet.run(trace, speed)
    assert len(fleet.outcomes) == len(trace.requests)
    return time.process_time() - began


def main() -> list[Row]:
    rows = []
    short = conversation()
    for what, trace, workers, speed, most in (
        ("conversation trace, 8 workers", short, 8, 5.0, 20.0),
        ("the same with every token decoded", conversation(decode=True), 8, 3.0, 20.0),
        ("20,000 requests, 1,000 workers", lengthened(short, 20_000), 1000, 625.0, 300.0),
    ):
        took = cpu_s(trace, workers, speed)
        rows.append(Row("3.8", f"replay of {what}: CPU", f"{took:.1f} s", f"<= {most:.0f} s", took <= most))
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
