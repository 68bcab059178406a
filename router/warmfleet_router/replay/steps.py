"""What a decision log tells of workers' steps. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

from warmfleet_proto.work import Work

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.lines import AnyLine
from warmfleet_router.replay.fitting import Sample


def steps_of(log: Iterable[AnyLine], worker: str = "") -> Iterator[Sample]:
    """What was computed between two reports of a worker, mostly one step, and how long it took. ``worker``
    is the name or address of the only one to look at; empty: all."""
    names: dict[str, str] = {}  # by address
    before: dict[str, tuple[int, Sample]] = {}  # by address: epoch and totals
    for line in log:
        if isinstance(line, lines.Joined):
            names[line.worker] = line.status.get("worker", "")
        elif isinstance(line, lines.Heard) and line.load is not None:
            if worker not in ("", line.worker, names.get(line.worker)):
                continue
            epoch, then = before.get(line.worker, (0, _totals({})))
            now = _totals(line.load)
            before[line.worker] = line.epoch, now
            if line.epoch == epoch and now.seconds > then.seconds and now.work != then.work:
                yield Sample(now.seconds - then.seconds, now.work.less(then.work))


def _totals(load: dict[str, Any]) -> Sample:
    told = load.get("work", {})
    return Sample(load.get("step_seconds_total", 0.0), Work(*(told.get(name, 0) for name in Work._fields)))
