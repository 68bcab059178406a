"""What a decision log tells of workers' steps. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from warmfleet_proto.work import Work

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.lines import AnyLine
from warmfleet_router.replay.fitting import Sample

TOGETHER = 4  # reports


def steps_of(log: Iterable[AnyLine], worker: str = "") -> Iterator[Sample]:
    """What a worker computed within a few reports, of a step each mostly, and how long it took. ``worker``
    is the name or address of the only one to look at; empty: all.

    One report is too few: an engine that plans ahead tells of a step when the next has been launched, so
    that some of the one's time is told with the other.
    """
    names: dict[str, str] = {}  # by address
    before: dict[str, tuple[int, Sample]] = {}  # by address: epoch and totals, when a sample began
    reports: Counter[str] = Counter()  # since then
    for line in log:
        if isinstance(line, lines.Joined):
            names[line.worker] = line.status.get("worker", "")
        elif isinstance(line, lines.Heard) and line.load is not None:
            if worker not in ("", line.worker, names.get(line.worker)):
                continue
            epoch, then = before.get(line.worker, (0, _totals({})))
            now = _totals(line.load)
            reports[line.worker] += 1
            if line.epoch == epoch and line.load.get("running") and reports[line.worker] < TOGETHER:
                continue
            before[line.worker] = line.epoch, now
            reports[line.worker] = 0
            if line.epoch == epoch and now.seconds > then.seconds and now.work != then.work:
                yield Sample(now.seconds - then.seconds, now.work.less(then.work))


def _totals(load: dict[str, Any]) -> Sample:
    told = load.get("work", {})
    return Sample(load.get("step_seconds_total", 0.0), Work(*(told.get(name, 0) for name in Work._fields)))
