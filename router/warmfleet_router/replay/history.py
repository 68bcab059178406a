"""What a decision log was about: its requests as a trace, its fleet, and where the hit rate went. Pure."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from warmfleet_proto.limits import KEY_BYTES

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.chains import kind_of
from warmfleet_router.decisions.lines import AnyLine, Placed
from warmfleet_router.decisions.messages import binary
from warmfleet_router.decisions.player import Judged, Player
from warmfleet_router.replay.continued import with_answers
from warmfleet_router.replay.trace import Request, Trace


@dataclass(slots=True)
class Told:
    """One request: where it went, and what came of it."""

    line: Placed
    keys: bytes
    delivered: int | None = None
    completion_tokens: int = 1


@dataclass(slots=True)
class History:
    """What a log tells of the kind of workers that served most requests."""

    policy: str = ""
    routing: dict[str, Any] = field(default_factory=dict)
    block_size: int = 1
    blocks: list[int] = field(default_factory=list)  # of each worker
    requests: list[Told] = field(default_factory=list)
    placements: int = 0  # of every kind
    replayed: int = 0  # of these, where the log tells enough
    same: int = 0
    difference: str = ""  # the first

    @property
    def span_s(self) -> float:
        return self.requests[-1].line.t - self.requests[0].line.t if self.requests else 0.0

    def trace(self, name: str) -> Trace:
        first = self.requests[0].line.t if self.requests else 0.0
        requests = [_request(told, first) for told in self.requests]
        available = [told.line.available for told in self.requests]
        return Trace(name, self.block_size, with_answers(requests, available, self.block_size))

    @property
    def served(self) -> list[bool]:
        """Of each request whether it is known what was cached for it."""
        return [told.delivered is not None for told in self.requests]

    def rates(self) -> tuple[float, float, float]:
        """Shares of the prompt tokens of requests that reached a first token: what some worker held (the best
        placement), what the chosen one was expected to hold, and what it delivered."""
        served = [told for told, counts in zip(self.requests, self.served, strict=True) if counts]
        prompts = sum(told.line.asked.prompt_tokens for told in served) or 1
        return (
            sum(told.line.available for told in served) / prompts,
            sum(told.line.expected for told in served) / prompts,
            sum(told.delivered or 0 for told in served) / prompts,
        )


def history(log: Iterable[AnyLine], limit: int | None = None) -> History:
    """Reads the first ``limit`` placements of a log."""
    made, player = History(), Player()
    statuses: dict[str, dict[str, Any]] = {}  # by worker
    booked: dict[int, Told] = {}
    told: list[tuple[str, Told]] = []  # with its kind of workers
    for line in log:
        if limit is not None and made.placements >= limit and isinstance(line, Placed):
            break
        judged = player.take(line)
        match line:
            case lines.Begin():
                made.policy, made.routing = line.policy, line.routing
            case lines.Joined():
                statuses[line.worker] = line.status
            case Placed() if judged is not None:
                _count(made, judged)
                kind = _kind(judged, statuses)
                booked[line.booking] = Told(line, judged.keys.get(kind, b""))
                told.append((kind, booked[line.booking]))
            case lines.First():
                _progress(booked.get(line.progress.get("booking", 0)), line.progress)
            case lines.Ended():
                _finish(booked.pop(line.finish.get("booking", 0), None), line.finish)
    _choose(made, told, statuses)
    return made


def _count(made: History, judged: Judged) -> None:
    made.placements += 1
    if judged.differs is None:
        return
    made.replayed += 1
    made.same += not judged.differs
    if judged.differs and not made.difference:
        made.difference = f"placement {made.placements}: {judged.differs}"


def _choose(made: History, told: list[tuple[str, Told]], statuses: dict[str, dict[str, Any]]) -> None:
    """The kind of workers that served most, and those of its workers that served at all."""
    kinds = Counter(kind for kind, _ in told)
    if not kinds:
        return
    kind = max(kinds, key=lambda k: kinds[k])
    made.block_size = int(kind.rpartition("/")[2])
    made.requests = [each for its, each in told if its == kind]
    seen = dict.fromkeys(each.line.worker for each in made.requests)
    made.blocks = [int(statuses.get(worker, {}).get("total_blocks", 0)) for worker in seen]


def _kind(judged: Judged, statuses: dict[str, dict[str, Any]]) -> str:
    """The kind of the chosen worker. If its Status is in a file that is gone, the first kind that was asked
    for."""
    status = statuses.get(judged.line.worker)
    if status is not None:
        return kind_of(binary(status.get("model_fingerprint", b"")), int(status.get("block_size", 1)))
    return next(iter(judged.keys), "/1")


def _progress(told: Told | None, progress: dict[str, Any]) -> None:
    if told is not None and not (progress.get("cached_unknown") or progress.get("cached_later")):
        told.delivered = min(int(progress.get("cached_tokens", 0)), told.line.asked.prompt_tokens - 1)


def _finish(told: Told | None, finish: dict[str, Any]) -> None:
    if told is not None:
        if finish.get("cached_known"):
            _progress(told, {"cached_tokens": finish.get("cached_tokens", 0)})
        told.completion_tokens = max(int(finish.get("completion_tokens", 0)), 1)


def _request(told: Told, first: float) -> Request:
    keys = array("Q", told.keys[: len(told.keys) // KEY_BYTES * KEY_BYTES])
    return Request(told.line.t - first, keys, told.line.asked.prompt_tokens, told.completion_tokens)


def ladder(infinite: float, pooled: float, history: History) -> Iterator[str]:
    """Where the hit rate went, a rung a line, each with what it lost to the one above."""
    best, ours, delivered = history.rates()
    rungs = (
        ("infinite cache", infinite, "one cache of any size that sees every request and answer"),
        ("pooled", pooled, "one cache as large as all of the fleet's"),
        ("best placement", best, "what some worker held when the request came"),
        ("ours", ours, "what the chosen worker was expected to hold"),
        ("delivered", delivered, "what workers reported as cached"),
    )
    above: float | None = None
    for name, rate, says in rungs:
        lost = "" if above is None else f"{rate - above:+.3f}"
        yield f"  {name:<15}{rate:>7.3f}{lost:>8}  {says}"
        above = rate
