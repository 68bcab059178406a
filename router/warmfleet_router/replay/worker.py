"""A modelled worker: the real scheduler's rules (admission, chunked prefill, growth, preemption, sealing)
on block counts and keys, with an engine whose steps take what a profile says.

As many steps as the profile's ``depth`` may be under way: one runs, what is behind it was planned before it
has ended. Runs of decode steps in which nothing else can happen are taken in one go; ``interrupt`` cuts such
a run at the next step boundary. Kept equal, step for step, to the worker's own scheduler by a test.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import count, islice
from operator import attrgetter

from warmfleet_proto.work import Work, work_of

from warmfleet_router.replay.cache import Cache, Node
from warmfleet_router.replay.flights import Flights
from warmfleet_router.replay.host import HostTier
from warmfleet_router.replay.job import Done, Flight, Job, Load, Retired, Share, Step
from warmfleet_router.replay.profile import Profile

SLOW_STEP_S = 0.1  # a token that comes later than this after the one before it is late
PREFETCHED = 4  # waiting jobs whose blocks are brought from host memory
MAX_RUN_S = 0.25  # of decode steps taken in one go: events are no later than a real worker's heartbeat
_completion_keys = count(1 << 63)
_arrival = attrgetter("number")


class Worker:
    def __init__(
        self,
        profile: Profile,
        block_size: int,
        total_blocks: int,
        slowness: float = 1.0,
        host_blocks: int = 0,
        by_cost: bool = False,
    ) -> None:
        self.profile = profile
        self.block_size = block_size
        self.host = HostTier(host_blocks) if host_blocks else None
        cost = self._block_s if by_cost else None
        self.cache = Cache(total_blocks, self.host.put if self.host else None, cost)
        self.loads: list[Load] = []  # since they were last taken
        self.pulls: list[tuple[Job, Flight]] = []  # the same: to begin
        self.under_way: deque[Step] = deque()  # the first one runs
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.steps = 0
        self.step_seconds = 0.0
        self.work = Work()  # of finished steps
        self.step_began: float | None = None
        self.prefill_s = 0.0  # of prompts computed: the uncached work
        self._slowness = slowness
        self._numbers = count(1)
        self._coming: Counter[int] = Counter()  # keys of the prompts of all jobs here
        self.cache.wanted = self._coming
        self.flights = Flights(self.cache, self._coming, block_size)

    def _block_s(self, depth: int) -> float:
        """Seconds to compute a block anew."""
        return self.profile.chunk_s(self.block_size, depth * self.block_size)

    def submit(self, job: Job) -> None:
        matched = max(self.held(job.keys), self.flights.named(job))
        while matched < len(job.keys) and job.keys[matched] in self._coming:
            matched += 1
        job.uncached = max(job.prompt_tokens - matched * self.block_size, 1)
        self._coming.update(job.keys)
        job.number = next(self._numbers)
        self.waiting.append(job)

    def held(self, keys: Sequence[int]) -> int:
        """Leading blocks in either tier, or on their way."""
        matched = len(self.cache.match(keys))
        if self.host:
            matched += self.host.run(keys, matched)
        return self.flights.follow(keys, matched)

    def ask_peers(self) -> None:
        """Asks for what the pulls of waiting jobs name, in the jobs' order."""
        for job in self.waiting:
            if job.pull and not job.waits and (flight := self.flights.ask(job, len(self.running))):
                self.pulls.append((job, flight))

    # ---- before a step -----------------------------------------------------------------------

    def schedule(self, now: float) -> Step | None:
        """One step more; None when nothing is to be done, or nothing before one under way has ended."""
        if len(self.under_way) == self.profile.depth:
            return None
        if any(step.repeats > 1 for step in self.under_way):
            return self._follow_run()
        grown = self._grow()
        self._ask_host()
        self.ask_peers()
        if not grown:
            return None
        self._admit(now)
        works, budget = [], self.profile.chunk_tokens
        for job in self.running:
            tokens = job.remaining
            if tokens > 1:
                tokens = min(tokens, budget)
                budget -= tokens
            if tokens:
                works.append(Share(job, job.planned, tokens))
        if not self.under_way:
            self.step_began = now if works else None
        if not works:
            return None
        return self._add(works, self._repeats(works))

    def _follow_run(self) -> Step:
        """The step behind a run: planned when the last of it begins, so nothing else can be in it. Its
        blocks are taken with the run's."""
        works = [Share(job, job.planned, 1) for job, _, _ in self.under_way[-1].works]
        return self._add(works, 1)

    def _add(self, works: list[Share], repeats: int) -> Step:
        step = Step(works, repeats, self._seconds(works, repeats))
        self.under_way.append(step)
        for job, start, tokens in works:
            last = start + tokens >= job.length + job.drawing
            job.planned = start + tokens + repeats - 1
            job.drawing = last and job.planned + 1 < job.prompt_tokens + job.completion_tokens
        return step

    def _ask_host(self) -> None:
        """Asks for what the next few waiting jobs lack on the device and host memory has."""
        if self.host is None:
            return
        for job in islice(self.waiting, PREFETCHED):
            if self._expects(job):
                continue
            start = len(self.cache.match(job.keys))
            blocks = self.host.run(job.keys, start)
            if blocks:
                self.host.use(job.keys[start : start + blocks])
                self.flights.expect(job, start + blocks)
                self.loads.append(Load(job, start, blocks))

    def _grow(self) -> bool:
        """False: the next step has to wait for those under way."""
        i = 0
        while i < len(self.running):
            job = self.running[i]
            if job.planned == job.blocks * self.block_size and job.remaining:
                while not self.cache.take(1):
                    if self.under_way:
                        return False
                    newest = self.running.pop()
                    self._preempt(newest)
                    if newest is job:
                        return True
                job.private += 1
            i += 1
        return True

    def _preempt(self, job: Job) -> None:
        self._release(job)
        self.waiting.appendleft(job)

    def _admit(self, now: float) -> None:
        if not self.waiting:
            return
        prompts = [job for job in self.running if job.remaining > 1]
        slots = self.profile.max_running - len(self.running)
        filling = self._filling()
        ready = [
            job for job in self.waiting if not self._expects(job) and not (job.pull and self.flights.busy)
        ]
        for job in ready:
            ahead = sum([each.remaining for each in prompts if each.number < job.number])
            if not slots or ahead >= self.profile.chunk_tokens:
                return
            if filling and self._next_key(job) in filling:
                return
            if not self._take(job, room=len(self.running)):
                return
            self.waiting.remove(job)
            self.flights.admitted(job)
            insort(self.running, job, key=_arrival)
            if job.admitted_at is None:
                job.admitted_at = now
                job.cached_tokens = job.computed
                self.prompt_tokens += job.prompt_tokens
                self.cached_tokens += job.computed
            slots -= 1
            prompts.append(job)

    def _filling(self) -> set[int]:
        """Blocks that become readable when the steps under way have finished."""
        return {
            key
            for step in self.under_way
            for job, _, _ in step.works
            for key in job.keys[len(job.nodes) : job.planned // self.block_size]
        }

    def _next_key(self, job: Job) -> int | None:
        """Key of the block after its readable prefix."""
        matched = len(self.cache.match(job.keys))
        return job.keys[matched] if matched < len(job.keys) else None

    def _expects(self, job: Job) -> bool:
        """Whether blocks that it needs next are on their way, for itself or for another."""
        return job.waits > 0 or self.flights.brings(job.keys)

    def _take(self, job: Job, room: int) -> bool:
        nodes = self.cache.match(job.keys[: job.length // self.block_size])
        if self._take_with(job, nodes, room):
            return True
        whole = len(nodes) * self.block_size == job.length
        return whole and room == 0 and self._take_with(job, nodes[:-1], room)

    def _take_with(self, job: Job, nodes: list[Node], room: int) -> bool:
        whole = len(nodes) * self.block_size == job.length
        shared = nodes[:-1] if whole else nodes
        needed = job.length // self.block_size + 1 - len(shared)
        if self.cache.available - sum(not node.pins for node in nodes) < needed + room:
            return False
        self.cache.pin(nodes)
        self.cache.take(needed)
        job.nodes, job.private = list(shared), needed
        job.computed = job.planned = job.length - 1 if whole else len(shared) * self.block_size
        job.copy = nodes[-1] if whole else None
        return True

    def _repeats(self, works: list[Share]) -> int:
        """How many steps in which every job decodes and nothing starts, ends or runs out of blocks, nor in
        those planned before they have ended."""
        if any(job.started_at is None or tokens > 1 for job, _, tokens in works):
            return 1
        if self._filling():  # somebody may wait for that
            return 1
        jobs = [work.job for work in works]
        if any(step.retired or jobs != [work.job for work in step.works] for step in self.under_way):
            return 1
        behind = self.profile.depth - 1
        left = min(job.completion_tokens - job.generated - job.drawing for job, _, _ in works) - behind
        first = self._seconds(works, 1)
        most = min(left, int(MAX_RUN_S / first) if first else left)
        if most <= 1 or self.cache.available < len(works) * ((most + behind) // self.block_size + 1):
            return 1
        return most

    def _seconds(self, works: list[Share], repeats: int) -> float:
        return self.profile.step_s(_work(works, repeats)) * self._slowness

    def interrupt(self, elapsed: float) -> bool:
        """Something has come: the step that runs is cut at its first boundary not before ``elapsed``
        seconds, those behind it to one. Whether the end of the one that runs has changed."""
        before = [step.repeats for step in self.under_way]
        for n, step in enumerate(self.under_way):
            self._cut(step, elapsed if n == 0 else 0.0)
        return bool(before) and self.under_way[0].repeats != before[0]

    def _cut(self, step: Step, elapsed: float) -> None:
        for repeats in range(1, step.repeats):
            seconds = self._seconds(step.works, repeats)
            if seconds >= elapsed:
                for job, _, _ in step.works:
                    job.planned -= step.repeats - repeats
                step.repeats, step.seconds = repeats, seconds
                return

    # ---- after a step ------------------------------------------------------------------------

    def commit(self, now: float) -> Done:
        """The step that ran has ended."""
        step = self.under_way.popleft()
        self.step_began = now if self.under_way else None
        for nodes, private in step.retired:
            self._let_go(nodes, private)
        done = Done([], [])
        slow = step.seconds / step.repeats > SLOW_STEP_S
        self.steps += step.repeats
        self.step_seconds += step.seconds
        self.work = self.work.plus(_work(step.works, step.repeats))
        for job, _, _ in step.works if step.repeats > 1 else ():
            self._decode(job, step.repeats - 1)
        step.share_out(now)
        for job, _, tokens in step.works:
            if job.started_at is None:
                self.prefill_s += self.profile.chunk_s(tokens, job.computed) * self._slowness
            self._settle(job, tokens)
            if job.uncomputed:
                continue
            if job.started_at is None:
                job.started_at = now
                done.started.append(job)
            else:
                job.steps += step.repeats
                job.slow_steps += step.repeats if slow else 0
            job.generated += 1
            if job.generated >= job.completion_tokens:
                self.running.remove(job)
                self._release(job)
                self._forget(job)
                done.ended.append(job)
            elif job.planned > job.computed == job.blocks * self.block_size:  # by the step behind a run
                self._take_another(job)
        return done

    def _forget(self, job: Job) -> None:
        for key in job.keys[: job.prompt_tokens // self.block_size]:
            self._coming[key] -= 1
            if not self._coming[key]:
                del self._coming[key]

    def _settle(self, job: Job, tokens: int) -> None:
        job.computed += tokens
        if job.planned == job.computed:
            job.drawing = False
        if job.copy is not None:
            self._retire((job.copy,), 0)
            job.copy = None
        self._seal(job)

    def _decode(self, job: Job, steps: int) -> None:
        """Steps that each compute the token which the one before drew."""
        for _ in range(steps):
            self._settle(job, 1)
            job.generated += 1
            if job.computed == job.blocks * self.block_size:
                self._take_another(job)

    def _take_another(self, job: Job) -> None:
        """There was room when the run began. Where a peer has pinned it since, a real worker's steps before
        that would have had it already."""
        if not self.cache.take(1):
            self.cache.overdraw()
        job.private += 1

    def _seal(self, job: Job) -> None:
        while (len(job.nodes) + 1) * self.block_size <= job.computed:
            index = len(job.nodes)
            if index == len(job.keys):
                job.keys.append(next(job.answer, None) or next(_completion_keys))
            parent = job.nodes[-1] if job.nodes else None
            job.private -= 1
            node, new = self.cache.seal(job.keys[index], parent)
            job.nodes.append(node)
            if not new:
                self._retire((), 1)

    def _release(self, job: Job) -> None:
        self._retire((*job.nodes, job.copy) if job.copy else tuple(job.nodes), job.private)
        job.nodes, job.private, job.computed, job.planned, job.copy = [], 0, 0, 0, None
        job.drawing = False

    def _retire(self, nodes: tuple[Node, ...], private: int) -> None:
        """Given up when all steps that are under way now have ended."""
        if self.under_way:
            self.under_way[-1].retired.append(Retired(nodes, private))
        else:
            self._let_go(nodes, private)

    def _let_go(self, nodes: tuple[Node, ...], private: int) -> None:
        self.cache.unpin(nodes)
        self.cache.give(private)

    # ---- what a worker reports ---------------------------------------------------------------

    @property
    def evictions(self) -> int:
        """Evictions from the last tier: of what is gone for good."""
        return self.host.evictions if self.host else self.cache.evictions

    @property
    def late_hits(self) -> int:
        return self.host.late_hits if self.host else self.cache.late_hits

    @property
    def prefill_tokens(self) -> int:
        waiting = sum(job.uncomputed if job.started_at is not None else job.uncached for job in self.waiting)
        return waiting + sum(job.uncomputed for job in self.running if job.uncomputed > 1)

    @property
    def wanted_blocks(self) -> int:
        """Different blocks of the prompts of all jobs here."""
        return len(self._coming)

    @property
    def context_tokens(self) -> int:
        return sum(job.computed for job in self.running)


def _work(shares: Iterable[Share], repeats: int) -> Work:
    """The work of a step that is repeated. Only steps that decode are: in each repetition every sequence
    attends to one more token."""
    once = work_of((tokens, start) for _, start, tokens in shares)
    if repeats == 1:
        return once
    batch, grown = once.decode_sequences, repeats * (repeats - 1) // 2
    return Work(0, 0, 0, repeats, repeats * batch, repeats * once.decode_context + grown * batch)
