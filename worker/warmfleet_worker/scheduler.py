"""The worker's batcher: which sequences compute which tokens in the next step, and what came of it.

``schedule`` makes a Plan, an engine executes it, ``commit`` (or ``fail``) tells the outcome. Nothing that a
step writes can be read before its commit. Requests leave at step boundaries only.
"""

import math
from collections import deque
from collections.abc import Iterable

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.hashing import chain
from warmfleet_proto.limits import TOKEN_BYTES

from warmfleet_worker.admission import Limits, admit, check_fits, uncached_tokens
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.engine.base import Drawn, Logprobs, Plan, StepResult, Work
from warmfleet_worker.filling import fork, seal_filled
from warmfleet_worker.load import Load, Totals
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import (
    Ending,
    Key,
    Output,
    Reason,
    Request,
    Sequence,
    Started,
    new_sequence,
)

_MAX_FAILURES = 3  # failed steps that a request survives, less one


class Scheduler:
    def __init__(self, limits: Limits, total_blocks: int) -> None:
        self.limits = limits
        self.cache = PrefixCache(BlockPool(total_blocks), limits.block_size)
        self.requests: dict[Key, Request] = {}
        self.running: list[Sequence] = []  # oldest first
        self.waiting: deque[Sequence] = deque()
        self.totals = Totals()
        self.draining = False
        self._planned: list[Sequence] = []
        self._plan: Plan | None = None
        self._dropped: list[Request] = []
        self._next_deadline = math.inf  # no live request's is earlier
        self._outputs: list[Output] = []

    # ---- requests come and go ----------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting or self._dropped)

    def submit(self, request: Request) -> None:
        """Queues a request. Raises BadRequest when it can never run here, Rejected when not now."""
        params = request.params
        prompt_tokens = len(request.prompt) // TOKEN_BYTES
        check_fits(prompt_tokens, params.choices, self.limits, self.cache.pool.total)
        if request.key in self.requests:
            raise BadRequest(f"handle {request.key.handle} is in use", "handle")
        if self.draining:
            raise Rejected("the worker is draining")
        if len(self.waiting) >= self.limits.max_waiting:
            raise Rejected(f"{len(self.waiting)} requests are waiting: the queue is full")
        request.max_tokens = min(params.max_tokens, self.limits.max_context - prompt_tokens)
        request.uncached = uncached_tokens(request, self.cache, self.limits.block_size)
        sequence = new_sequence(request)
        request.live = [sequence]
        self.requests[request.key] = request
        self.waiting.append(sequence)
        self.totals.requests += 1
        if request.deadline is not None:
            self._next_deadline = min(self._next_deadline, request.deadline)

    def drop(self, key: Key, ending: Ending) -> None:
        """Ends a request at the next step boundary; unknown keys have ended already."""
        request = self.requests.get(key)
        if request is not None and request.dropped is None:
            request.dropped = ending
            self._dropped.append(request)

    def take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    # ---- before a step -----------------------------------------------------------------------

    def schedule(self, now: float) -> Plan | None:
        """The next step; None when nothing can run."""
        assert self._plan is None
        self._reap(now)
        self._grow()
        self._admit(now)
        works = []
        budget = self.limits.chunk_tokens
        for sequence in self._runnable():
            count = sequence.remaining
            if count > 1:
                count = min(count, budget)
                budget -= count
            if count:
                works.append(self._work(sequence, count))
                self._planned.append(sequence)
        if not works:
            return None
        copies = tuple(s.copy for s in self._planned if s.copy)
        self._plan = Plan(tuple(works), copies)
        return self._plan

    def _runnable(self) -> Iterable[Sequence]:
        """All that run, or just one of those whose last step failed in company."""
        for sequence in self.running:
            if sequence.alone:
                return [sequence]
        return self.running

    def _work(self, sequence: Sequence, count: int) -> Work:
        request, start = sequence.request, sequence.computed
        end = start + count
        token_ids = sequence.token_ids
        last = end == len(token_ids)
        scored = None if request.started else request.params.prompt_logprobs
        return Work(
            tuple(token_ids[start:end]),
            start,
            sequence.runs,
            request.root,
            request.params.sampling if last else None,
            sequence.choices,
            sequence.completion_tokens,
            scored,
            None if last or scored is None else token_ids[end],
        )

    def _grow(self) -> None:
        """A block for every sequence whose next token needs one; the newest give up theirs for it."""
        i = 0
        while i < len(self.running):
            sequence = self.running[i]
            if sequence.computed == len(sequence.blocks) * self.limits.block_size:
                while (taken := self.cache.allocate(1)) is None:
                    newest = self.running.pop()
                    self._preempt(newest)
                    if newest is sequence:
                        return
                sequence.blocks += taken
            i += 1

    def _preempt(self, sequence: Sequence) -> None:
        """Its blocks stay cached while they last; it waits at the front and computes what is gone anew."""
        self._release(sequence)
        sequence.hashes = chain(sequence.request.root, sequence.token_ids.tobytes(), self.limits.block_size)
        self.waiting.appendleft(sequence)
        self.totals.preemptions += 1

    def _admit(self, now: float) -> None:
        if not self.waiting:
            return
        prefill = sum(s.remaining for s in self.running if s.remaining > 1)
        slots = self.limits.max_running - sum(len(s.choices) for s in self.running)
        while self.waiting and prefill < self.limits.chunk_tokens:
            sequence = self.waiting[0]
            if len(sequence.choices) > slots:
                return
            if not admit(sequence, self.cache, self.limits, room=len(self.running)):
                return
            self.running.append(self.waiting.popleft())
            self._note_admission(sequence, now)
            slots -= len(sequence.choices)
            prefill += sequence.remaining

    def _note_admission(self, sequence: Sequence, now: float) -> None:
        request = sequence.request
        if request.admitted is None:  # what is found again after a preemption is not a hit
            request.admitted = now
            request.cached_tokens = sequence.computed
            self.totals.prompt_tokens += sequence.prompt_tokens
            self.totals.cached_tokens += sequence.computed

    # ---- after a step ------------------------------------------------------------------------

    def commit(self, result: StepResult, now: float) -> None:
        """The planned step has finished on the device."""
        plan, planned = self._take_plan()
        self.totals.steps += 1
        for sequence, work, drawn in zip(planned, plan.works, result.drawn, strict=True):
            self._settle(sequence, work)
            if sequence.request.dropped is None:
                self._take_drawn(sequence, work, drawn, now)
        self._reap(now)

    def fail(self, message: str, now: float) -> None:
        """The planned step raised: what it wrote is void. A sequence that was alone in it fails; others
        compute again, each in a step of its own, so that one bad request cannot take its neighbours along."""
        _, planned = self._take_plan()
        self.totals.failed_steps += 1
        for sequence in reversed(planned):
            sequence.request.failures += 1
            if len(planned) == 1 or sequence.request.failures >= _MAX_FAILURES:
                self.drop(sequence.request.key, Ending(Reason.FAILED, message))
            else:
                sequence.alone = True
                self.running.remove(sequence)
                self._preempt(sequence)
        self._reap(now)

    def _take_plan(self) -> tuple[Plan, list[Sequence]]:
        assert self._plan is not None
        plan, planned = self._plan, self._planned
        self._plan, self._planned = None, []
        return plan, planned

    def _settle(self, sequence: Sequence, work: Work) -> None:
        """What the step computed counts from now on."""
        sequence.computed += len(work.token_ids)
        sequence.alone = False
        if sequence.copy is not None:
            self.cache.release([sequence.copy.source])
            sequence.copy = None
        seal_filled(sequence, self.cache, self.limits.block_size)

    def _take_drawn(self, sequence: Sequence, work: Work, drawn: Drawn, now: float) -> None:
        sequence.request.prompt_logprobs += drawn.prompt_logprobs
        if work.sampling is None:
            return
        forks = [sequence]
        if len(sequence.choices) > 1:
            forks = fork(sequence, self.cache, self.limits.block_size)
            sequence.request.live = list(forks)
            at = self.running.index(sequence) + 1
            self.running[at:at] = forks[1:]
        for i, each in enumerate(forks):
            self._extend(each, drawn.token_ids[i], drawn.logprobs[i : i + 1], now)

    def _extend(self, sequence: Sequence, token_id: int, logprobs: tuple[Logprobs, ...], now: float) -> None:
        """One drawn token: appended and delivered, or the choice's end."""
        request = sequence.request
        position = sequence.completion_tokens
        ending = None
        token_ids: tuple[int, ...] = ()
        if position >= request.max_tokens:
            ending = Ending(Reason.LENGTH)
        elif token_id in request.params.stop_ids:
            ending = Ending(Reason.STOP, stop_id=token_id)
        else:
            token_ids = (token_id,)
            sequence.token_ids.append(token_id)
            self.totals.completion_tokens += 1
            if position + 1 == request.max_tokens:
                ending = Ending(Reason.LENGTH)
        started, scores = self._start(request, now)
        self._outputs.append(
            Output(
                request,
                sequence.choices[0],
                position,
                token_ids,
                logprobs if token_ids else (),
                scores,
                started,
                ending,
            )
        )
        if ending:
            self._end(sequence, ending)

    def _start(self, request: Request, now: float) -> tuple[Started | None, tuple[Logprobs, ...]]:
        """What goes with a request's first output, once."""
        if request.started:
            return None, ()
        assert request.admitted is not None
        request.started = True
        scores, request.prompt_logprobs = tuple(request.prompt_logprobs), []
        queue_s = request.admitted - request.submitted
        return Started(request.cached_tokens, queue_s, now - request.admitted), scores

    def _reap(self, now: float) -> None:
        """Ends what was dropped or is past its deadline."""
        if now >= self._next_deadline:
            for request in self.requests.values():
                if request.deadline is not None and request.deadline <= now:
                    self.drop(request.key, Ending(Reason.DEADLINE, "the deadline has passed"))
            left = (r.deadline for r in self.requests.values() if r.deadline is not None and not r.dropped)
            self._next_deadline = min(left, default=math.inf)
        dropped, self._dropped = self._dropped, []
        for request in dropped:
            assert request.dropped is not None
            for sequence in list(request.live):
                for choice in sequence.choices:
                    at = sequence.completion_tokens
                    self._outputs.append(Output(request, choice, at, ending=request.dropped))
                self._end(sequence, request.dropped)

    def _end(self, sequence: Sequence, ending: Ending) -> None:
        """A sequence leaves; its full blocks stay cached."""
        request = sequence.request
        self.totals.endings[ending.reason] += len(sequence.choices)
        if sequence.blocks:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
        request.live.remove(sequence)
        if not request.live:
            del self.requests[request.key]

    def _release(self, sequence: Sequence) -> None:
        self.cache.release(sequence.held)
        sequence.forget_blocks()

    # ---- what others see ---------------------------------------------------------------------

    def load(self) -> Load:
        pool = self.cache.pool
        waiting = sum(s.remaining if s.request.started else s.request.uncached for s in self.waiting)
        return Load(
            running=len(self.running),
            waiting=len(self.waiting),
            prefill_tokens=waiting + sum(s.remaining for s in self.running if s.remaining > 1),
            context_tokens=sum(s.computed for s in self.running),
            free_blocks=pool.free,
            cached_blocks=pool.cached,
            pinned_blocks=pool.pinned,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when blocks and sequences disagree. Between steps."""
        self.cache.check_integrity()
        pool = self.cache.pool
        held = [block for sequence in self.running for block in sequence.held]
        assert set(held) == {b for b in range(pool.total) if pool.is_pinned(b)}
        assert not any(s.held for s in self.waiting)
        assert {id(s) for r in self.requests.values() for s in r.live} == {
            id(s) for s in [*self.running, *self.waiting]
        }
