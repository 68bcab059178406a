"""The highest speed of a trace at which a policy still keeps a bound."""

import re
from collections.abc import Callable
from typing import NamedTuple

from warmfleet_proto.settings import ConfigError

from warmfleet_router.replay.report import Row

STEPS = 8  # of the search: the answer is within 2 ** -STEPS of the interval's ratio
SLOWEST, FASTEST = 1 / 16, 256.0


class Bound(NamedTuple):
    column: str
    limit: float

    def holds(self, row: Row) -> bool:
        return bool(getattr(row, self.column) < self.limit)


class Speed(NamedTuple):
    """The highest at which ``holds`` is true of ``policy``; 0: at none."""

    policy: str
    holds: str
    speed: float


def parse(text: str) -> Bound:
    """``ttft_p99<10``. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\w+)\s*<\s*([\d.]+)\s*", text)
    if not found or found.group(1) not in Row._fields[1:]:
        raise ConfigError(
            f"--capacity-at {text!r}: expected COLUMN<NUMBER, a column of {', '.join(Row._fields[1:])}"
        )
    return Bound(found.group(1), float(found.group(2)))


def search(bound: Bound, play: Callable[[float], Row]) -> float:
    """Bisects the logarithm of the speed; 0 when not even the slowest holds."""
    low, high = 0.0, SLOWEST
    while high <= FASTEST and bound.holds(play(high)):
        low, high = high, high * 2
    if not low:
        return 0.0
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        if bound.holds(play(middle)):
            low = middle
        else:
            high = middle
    return low
