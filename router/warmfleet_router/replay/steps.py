"""What a decision log tells of a worker's steps: prompts that it computed alone, and steps that only
decoded. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.lines import AnyLine, First, Heard, Placed
from warmfleet_router.replay.fitting import Measured


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
                    yield from self._decode(line.worker, line.epoch, line.load)

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

    def _decode(self, worker: str, epoch: int, load: dict[str, Any]) -> Iterator[Measured]:
        """Between two reports without a prompt in them or between them, as the router itself learns."""
        before_epoch, before = self._loads.get(worker, (0, {}))
        self._loads[worker] = epoch, load
        steps = load.get("steps_total", 0) - before.get("steps_total", 0)
        quiet = not before.get("prefill_tokens") and not load.get("prefill_tokens")
        same = before.get("prompt_tokens_total") == load.get("prompt_tokens_total")
        if epoch != before_epoch or steps <= 0 or not quiet or not same or not before.get("running"):
            return
        seconds = (load.get("step_seconds_total", 0.0) - before.get("step_seconds_total", 0.0)) / steps
        batch = 0.5 * (before["running"] + load.get("running", 0))
        context = 0.5 * (before.get("context_tokens", 0) + load.get("context_tokens", 0))
        if seconds > 0:
            yield Measured(seconds, batch=batch, context=context)
