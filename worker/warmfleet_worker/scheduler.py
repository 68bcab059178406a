"""The worker's batcher: which sequences compute which tokens in the next step, and what came of it.

``schedule`` makes a Plan, an engine executes it, ``commit`` (or ``fail``) tells the outcome. Nothing that a
step writes can be read before its commit. Requests leave at step boundaries only.

A step may be planned while the one before it runs. A token that this one has not drawn yet is then named by
its place in it. Whatever depends on how the running step turns out waits until it has finished: forks,
preemption, and prompts whose prefix it computes. If a sequence turns out to have ended in the running step,
the next step computes it in vain, and its blocks stay pinned until that one has finished, too.
"""

import math
from collections import Counter
from collections.abc import Iterable

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.work import work_of

from warmfleet_worker.admission import Limits, check_fits, uncached_tokens
from warmfleet_worker.batch import Batch
from warmfleet_worker.drawn import extend
from warmfleet_worker.engine.base import Drawn, Plan, StepResult, Work
from warmfleet_worker.fetch import Arrival, Order
from warmfleet_worker.fetching import Fetching
from warmfleet_worker.filling import seal_filled
from warmfleet_worker.load import Load, Totals
from warmfleet_worker.planning import plan_work
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import Ending, Key, Output, Reason, Request, Sequence, new_sequence
from warmfleet_worker.steps import PlannedStep

_MAX_FAILURES = 2  # steps that failed with nobody else in them


class Scheduler:
    def __init__(self, limits: Limits, total_blocks: int) -> None:
        self.limits = limits
        self.totals = Totals()
        self.batch = Batch(limits, total_blocks, self.totals)
        self.requests: dict[Key, Request] = {}
        self._coming: Counter[bytes] = Counter()  # block hashes of the prompts of all requests here
        self.cache.wanted = self._coming
        self.draining = False
        self._dropped: list[Request] = []
        self._finished = 0.0  # when the last step had finished
        self._next_deadline = math.inf  # no live request's is earlier
        self._outputs: list[Output] = []

    @property
    def cache(self) -> PrefixCache:
        return self.batch.cache

    @property
    def fetching(self) -> Fetching:
        return self.batch.fetching

    @property
    def under_way(self) -> int:
        """Steps that were planned and whose outcome is not known."""
        return len(self.batch.steps)

    @property
    def idle(self) -> bool:
        return not self.requests and not self.under_way

    def load(self) -> Load:
        return self.batch.load()

    # ---- requests come and go ----------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request. Raises BadRequest when it can never run here, Rejected when not now."""
        prompt_tokens = len(request.prompt) // TOKEN_BYTES
        check_fits(prompt_tokens, request.params.choices, self.limits, self.cache.pool.total)
        if request.key in self.requests:
            raise BadRequest(f"handle {request.key.handle} is in use", "handle")
        if self.draining:
            raise Rejected("the worker is draining")
        if len(self.batch.waiting) >= self.limits.max_waiting:
            raise Rejected(f"{len(self.batch.waiting)} sequences are waiting: the queue is full")
        request.max_tokens = min(request.params.max_tokens, self.limits.max_context - prompt_tokens)
        sequence = new_sequence(request)
        readable = self.fetching.reach(sequence)
        request.uncached = uncached_tokens(sequence, readable, self._coming, self.limits.block_size)
        self._coming.update(request.hashes)
        request.live = [sequence]
        self.requests[request.key] = request
        self.batch.waiting += request.live
        self.totals.requests += 1
        request.number = self.totals.requests
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

    # ---- fetches -----------------------------------------------------------------------------

    def take_orders(self) -> list[Order]:
        """What carriers should begin, turn or give up. They owe an end to every Fetch."""
        return self.fetching.take_orders()

    def bring(self, sequence: Sequence, now: float) -> int | None:
        """Fetches what a sequence lacks that no request waits for (see ``Fetching.bring``)."""
        return self.fetching.bring(sequence, len(self.batch.running), now)

    def let_go(self, fetch_id: int) -> None:
        self.fetching.let_go(fetch_id)

    def arrived(self, arrival: Arrival, now: float) -> None:
        """A carrier's word, at any time; also between ``schedule`` and ``commit``."""
        self.fetching.arrived(arrival, now)

    @property
    def next_timer(self) -> float:
        """When ``schedule`` will have something to do even if nothing happens until then."""
        return min(self._next_deadline, self.fetching.next_deadline, self.fetching.next_race)

    # ---- before a step -----------------------------------------------------------------------

    def schedule(self, now: float) -> Plan | None:
        """The next step. None if there is nothing to do, or nothing until a step under way has finished."""
        self._reap(now)
        self.batch.look(now)
        self.batch.catch_up(now)
        if not self.batch.grow(now):
            return None
        self.batch.admit(now)
        works: list[Work] = []
        copies, planned = [], []
        budget, draws = self.limits.chunk_tokens, 0
        for sequence in self._runnable():
            count = sequence.remaining
            if count > 1:
                count = min(count, budget)
                if (stretch := self.fetching.stretch(sequence, now)) is not None:
                    count = min(count, stretch)
                budget -= count
            if count:
                if sequence.copy is not None and not sequence.under_way:
                    copies.append(sequence.copy)
                works.append(plan_work(sequence, count, draws))
                planned.append(sequence)
                draws += works[-1].draws
        if not works:
            return None
        plan = Plan(tuple(works), tuple(copies))
        self.batch.steps.add(plan, planned, now)
        return plan

    def _runnable(self) -> Iterable[Sequence]:
        """Whose tokens the next step computes: all that run, or a single one if its last step failed together
        with others."""
        for sequence in self.batch.running:
            if sequence.alone:
                return [] if self.under_way else [sequence]
        return self.batch.running

    # ---- after a step ------------------------------------------------------------------------

    def commit(self, result: StepResult, now: float) -> None:
        """The oldest step under way has finished on the device."""
        step = self.batch.steps.finish()
        self.totals.steps += 1
        done = work_of((len(work.token_ids), work.start) for work in step.plan.works)
        self.totals.work = self.totals.work.plus(done)
        self._share_out(step, now)
        seconds = now - max(step.planned, self._finished)
        self.fetching.pace.computed(done.prompt_tokens, done.prompt_pairs, seconds)
        self._finished = now
        for sequence, work, drawn in zip(step.sequences, step.plan.works, result.drawn, strict=True):
            if not sequence.blocks:
                continue  # it ended while the step was under way
            self._settle(sequence, work)
            if sequence.request.dropped is None:
                self._take_drawn(sequence, work, drawn, now)
        self._reap(now)

    def _share_out(self, step: PlannedStep, now: float) -> None:
        """Divides a step's time among the prompts in it, by their tokens: what several shared is not the
        price of each. A request's first step counts from its admission."""
        shares = [
            (sequence.request, len(work.token_ids))
            for sequence, work in zip(step.sequences, step.plan.works, strict=True)
            if len(work.token_ids) > 1 or not sequence.request.started
        ]
        total = sum(tokens for _, tokens in shares)
        for request, tokens in shares:
            if not request.started and request.admitted is not None:
                since = self._finished if request.work_s else request.admitted
                request.work_s += (now - since) * tokens / total

    def fail(self, message: str, now: float) -> None:
        """The oldest step under way raised. What it and the steps planned after it wrote does not count.

        Its sequences compute again, each in a step of its own, so that a bad request fails alone and not its
        neighbours with it. To be called when no step runs on the device any more.
        """
        failed = self.batch.steps.finish().sequences
        behind = [sequence for _ in range(self.under_way) for sequence in self.batch.steps.finish().sequences]
        self.totals.failed_steps += 1
        for sequence in reversed([s for s in self.batch.running if s in failed or s in behind]):
            sequence.request.failures += failed == [sequence]
            if sequence.request.failures == _MAX_FAILURES:
                self.drop(sequence.request.key, Ending(Reason.FAILED, message))
            else:
                sequence.alone = sequence in failed
                self.batch.preempt(sequence, now)
        self._reap(now)

    def _settle(self, sequence: Sequence, work: Work) -> None:
        """What the step computed of a sequence counts from now on, and full blocks become readable."""
        sequence.computed += len(work.token_ids)
        sequence.alone = False
        release = self.batch.steps.release
        if not sequence.under_way:
            sequence.drawing = None
        if sequence.copy is not None:
            release([sequence.copy.source])
            sequence.copy = None
        seal_filled(sequence, self.cache, release, self.limits.block_size)

    def _take_drawn(self, sequence: Sequence, work: Work, drawn: Drawn, now: float) -> None:
        sequence.request.prompt_logprobs += drawn.prompt_logprobs
        if work.sampling is None:
            return
        forks = [sequence] if len(sequence.choices) == 1 else self.batch.fork(sequence)
        for i, each in enumerate(forks):
            output = extend(each, drawn.token_ids[i], drawn.logprobs[i : i + 1], now)
            self.totals.completion_tokens += len(output.token_ids)
            self._outputs.append(output)
            if output.ending is not None:
                self._end(each, output.ending, now)

    def _reap(self, now: float) -> None:
        """Ends what was dropped or is past its deadline."""
        if now >= self._next_deadline:
            self._drop_late(now)
        dropped, self._dropped = self._dropped, []
        for request in dropped:
            assert request.dropped is not None
            for sequence in list(request.live):
                at = sequence.completion_tokens
                for choice in sequence.choices:
                    self._outputs.append(Output(request, choice, at, ending=request.dropped))
                self._end(sequence, request.dropped, now)

    def _drop_late(self, now: float) -> None:
        self._next_deadline = math.inf
        for request in self.requests.values():
            if request.deadline is None or request.dropped is not None:
                continue
            if request.deadline <= now:
                self.drop(request.key, Ending(Reason.DEADLINE, "the deadline has passed"))
            else:
                self._next_deadline = min(self._next_deadline, request.deadline)

    def _end(self, sequence: Sequence, ending: Ending, now: float) -> None:
        request = sequence.request
        self.totals.endings[ending.reason] += len(sequence.choices)
        self.batch.leave(sequence, now)
        request.live.remove(sequence)
        if not request.live:
            del self.requests[request.key]
            self._coming.subtract(request.hashes)
            for block_hash in request.hashes:
                if not self._coming[block_hash]:
                    self._coming.pop(block_hash, None)

    def check_integrity(self, lent: Iterable[int] = ()) -> None:
        """Raises AssertionError when blocks, sequences and requests disagree. ``lent``: pinned for peers."""
        self.batch.check_integrity(lent)
        live = {id(sequence) for request in self.requests.values() for sequence in request.live}
        assert live == {id(sequence) for sequence in [*self.batch.running, *self.batch.waiting]}
