"""Traces that a test makes, in the format of the public ones."""

import json
from pathlib import Path

from warmfleet_router.replay.trace import Trace


def write(path: Path, trace: Trace) -> None:
    with path.open("w") as file:
        for r in trace.requests:
            line = {
                "timestamp": r.arrival_s * 1000,
                "input_length": r.prompt_tokens,
                "output_length": r.completion_tokens,
                "hash_ids": list(r.keys),
            }
            file.write(json.dumps(line) + "\n")
