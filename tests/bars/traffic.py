"""The recorded conversations that bars and tests play."""

from array import array
from pathlib import Path

from warmfleet_router.replay.trace import Trace, load

PATH = Path(__file__).parents[1] / "data" / "mooncake_conversation_blk512.jsonl.gz"
BLOCK_S = 0.025  # of 512 tokens, with a flat engine


def conversation(limit: int | None = None, *, decode: bool = False) -> Trace:
    """The first ``limit`` requests; without ``decode`` every completion is one token."""
    trace = load(str(PATH), limit=limit)
    if decode:
        return trace
    return trace._replace(requests=[r._replace(completion_tokens=1) for r in trace.requests])


def lengthened(trace: Trace, requests: int) -> Trace:
    """The trace again and again, each time by other people."""
    made = list(trace.requests)
    turn = 0
    while len(made) < requests:
        turn += 1
        late = turn * trace.span_s
        made += [
            r._replace(arrival_s=r.arrival_s + late, keys=array("Q", [k ^ turn for k in r.keys]))
            for r in trace.requests
        ]
    return trace._replace(requests=made[:requests])
