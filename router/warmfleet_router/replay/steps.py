"""What a decision log tells of a worker's steps: prompts that it computed alone, steps that only decoded, and
those of prompts beside whatever else ran. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.lines import AnyLine, First, Heard, Placed
from warmfleet_router.replay.fitting import Measured

BOUND_SEEN = 3  # steps of equally many prompt tokens that left some, and none of more


class _Waiting(NamedTuple):
    prompt_tokens: int
    worker: str


class Steps:
    """``worker`` is the name or address of the only one to look at; empty: all."""

    def __init__(self, chunk_tokens: int, worker: str = "") -> None:
        self._chunk = chunk_tokens
        self._only = worker
        self._names: dict[str, str] = {}  # by address
        self._flying: dict[str, set[int]] = {}  # bookings by worker
        self._alone: dict[int, _Waiting] = {}  # that have had their worker to themselves so far
        self._placed: dict[int, str] = {}
        self._loads: dict[str, tuple[int, dict[str, Any]]] = {}  # with its epoch
        self._most = 0  # prompt tokens of a step
        self._full: Counter[int] = Counter()  # the same of steps that left some

    @property
    def bound(self) -> int:
        """What no step went beyond, and several went up to that left some: 0 where none is to be seen."""
        return self._most if self._full[self._most] >= BOUND_SEEN else 0

    def of(self, log: Iterable[AnyLine]) -> Iterator[Measured]:
        for line in log:
            match line:
                case lines.Joined():
                    self._names[line.worker] = line.status.get("worker", "")
                case Placed():
                    self._place(line)
                case First():
                    yield from self._first(line)
                case lines.Ended():
                    self._end(int(line.finish.get("booking", 0)))
                case Heard() if line.load is not None and self._wanted(line.worker):
                    yield from self._between(line.worker, line.epoch, line.load)

    def _wanted(self, worker: str) -> bool:
        return self._only in ("", worker, self._names.get(worker))

    def _place(self, line: Placed) -> None:
        flying = self._flying.setdefault(line.worker, set())
        for booking in flying:
            self._alone.pop(booking, None)
        if not flying and self._wanted(line.worker):
            self._alone[line.booking] = _Waiting(line.asked.prompt_tokens, line.worker)
        flying.add(line.booking)
        self._placed[line.booking] = line.worker

    def _end(self, booking: int) -> None:
        self._alone.pop(booking, None)
        worker = self._placed.pop(booking, None)
        if worker is not None:
            self._flying[worker].discard(booking)

    def _first(self, line: First) -> Iterator[Measured]:
        waiting = self._alone.pop(int(line.progress.get("booking", 0)), None)
        seconds = float(line.progress.get("prefill_s", 0.0))
        told = not (line.progress.get("cached_unknown") or line.progress.get("cached_later"))
        if waiting is None or seconds <= 0 or not told:
            return
        cached = int(line.progress.get("cached_tokens", 0))
        starts = range(cached, waiting.prompt_tokens, self._chunk)
        chunks = [(min(self._chunk, waiting.prompt_tokens - start), start) for start in starts]
        yield Measured(seconds, chunks, passes=len(chunks))

    def _between(self, worker: str, epoch: int, load: dict[str, Any]) -> Iterator[Measured]:
        """Two reports of a worker."""
        before_epoch, before = self._loads.get(worker, (0, {}))
        self._loads[worker] = epoch, load
        if epoch != before_epoch or load.get("steps_total", 0) <= before.get("steps_total", 0):
            return
        found = _decoded(before, load)
        if found is None and (found := _computed(before, load)):
            tokens = found.chunks[0][0]
            self._most = max(self._most, tokens)
            self._full[tokens] += bool(load.get("prefill_tokens"))
        if found is not None and found.seconds > 0:
            yield found


def _more(before: dict[str, Any], load: dict[str, Any], name: str) -> Any:
    return load.get(name, 0) - before.get(name, 0)


def _decoded(before: dict[str, Any], load: dict[str, Any]) -> Measured | None:
    """Without a prompt in them or between them, as the router itself learns."""
    quiet = not before.get("prefill_tokens") and not load.get("prefill_tokens")
    if not quiet or _more(before, load, "prompt_tokens_total") or not before.get("running"):
        return None
    seconds = _more(before, load, "step_seconds_total") / _more(before, load, "steps_total")
    batch = 0.5 * (before["running"] + load.get("running", 0))
    context = 0.5 * (before.get("context_tokens", 0) + load.get("context_tokens", 0))
    return Measured(seconds, batch=batch, context=context)


def _computed(before: dict[str, Any], load: dict[str, Any]) -> Measured | None:
    """A step of prompts, or the mean of several that all had some. Of those that run the reports tell sums:
    each is taken to have come equally far."""
    steps, new = _more(before, load, "steps_total"), _more(before, load, "prompt_tokens_total")
    waiting = before.get("waiting") or load.get("waiting")
    if waiting and (new or _more(before, load, "requests_total")):
        return None  # those who wait may turn out to need less than they seemed to
    cached = _more(before, load, "cached_tokens_total")
    tokens = (new - cached + _more(load, before, "prefill_tokens")) / steps
    left = load.get("prefill_tokens", 0)
    if tokens <= 1 or (steps > 1 and not (left and before.get("prefill_tokens"))):
        return None
    running, context = before.get("running", 0), before.get("context_tokens", 0)
    batch = running
    if before.get("prefill_tokens"):  # not all of those decode
        if running > 1 and "completion_tokens_total" not in load:
            return None
        batch = max(_more(before, load, "completion_tokens_total") / steps - (not left), 0)
        cached = context / running if running else 0
    seconds = _more(before, load, "step_seconds_total") / steps
    decoded = context * batch / running if running else 0
    return Measured(seconds, [(round(tokens), round(cached))], batch=batch, context=decoded)
