"""A modelled worker: the real scheduler's rules (admission, chunked prefill, growth, preemption, sealing)
on block counts and keys, with an engine whose steps take what a profile says.

Runs of decode steps in which nothing else can happen are taken in one go; ``interrupt`` cuts such a
run at the next step boundary. Kept equal, step for step, to the worker's own scheduler by a test.
"""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import count, islice
from typing import NamedTuple

from warmfleet_router.replay.cache import Cache, Node
from warmfleet_router.replay.host import HostTier
from warmfleet_router.replay.profile import Profile

SLOW_STEP_S = 0.1  # a token that comes later than this after the one before it is late
PREFETCHED = 4  # waiting jobs whose blocks are brought from host memory
MAX_RUN_S = 0.25  # of decode steps taken in one go: events are no later than a real worker's heartbeat
_completion_keys = count(1 << 63)


class Job:
    """One request at a worker."""

    __slots__ = (
        "admitted_at",
        "booking",
        "cached_tokens",
        "completion_tokens",
        "computed",
        "copy",
        "generated",
        "keys",
        "load_s",
        "loaded",
        "nodes",
        "private",
        "prompt_tokens",
        "pull_bytes",
        "pull_s",
        "pulled",
        "slow_steps",
        "started_at",
        "steps",
        "submitted_at",
        "uncached",
        "waits",
    )  # fmt: skip

    def __init__(
        self, booking: int, keys: Sequence[int], prompt_tokens: int, completion_tokens: int, now: float
    ) -> None:
        self.booking = booking
        self.keys = list(keys)  # of all full blocks, completion included as it grows
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.submitted_at = now
        self.admitted_at: float | None = None
        self.started_at: float | None = None
        self.cached_tokens = 0  # of the first admission
        self.uncached = prompt_tokens  # seemed to need computing at submit
        self.generated = 0
        self.computed = 0
        self.nodes: list[Node] = []  # readable leading blocks, pinned
        self.private = 0  # blocks after them
        self.copy: Node | None = None  # pinned until the next step has copied it
        self.waits = 0  # transfers under way that it waits for: not admitted before
        self.loaded = 0  # blocks that came from host memory
        self.load_s = 0.0
        self.pulled = 0  # blocks that came from a peer
        self.pull_bytes = 0.0
        self.pull_s = 0.0
        self.steps = 0
        self.slow_steps = 0

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.generated

    @property
    def remaining(self) -> int:
        return self.prompt_tokens + self.generated - self.computed

    @property
    def blocks(self) -> int:
        return len(self.nodes) + self.private


class Step(NamedTuple):
    """``repeats`` equal steps in one go; more than one only when all of it decodes."""

    works: list[tuple[Job, int]]  # tokens to compute
    repeats: int
    seconds: float


class Load(NamedTuple):
    """Blocks of a waiting job that host memory holds, to be brought to the device."""

    job: Job
    start: int  # blocks before them
    blocks: int


class Done(NamedTuple):
    """What a finished step made: first tokens, and jobs that ended."""

    started: list[Job]
    ended: list[Job]


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
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.steps = 0
        self.step_seconds = 0.0
        self.step_began: float | None = None
        self.prefill_s = 0.0  # of prompts computed: the uncached work
        self._slowness = slowness
        self._arriving: Counter[int] = Counter()  # keys of the blocks that are being brought
        self._coming: Counter[int] = Counter()  # keys of the prompts of all jobs here

    def _block_s(self, depth: int) -> float:
        """To compute a block anew."""
        return self.profile.chunk_s(self.block_size, depth * self.block_size)

    def submit(self, job: Job) -> None:
        matched = self.held(job.keys)
        while matched < len(job.keys) and job.keys[matched] in self._coming:
            matched += 1
        job.uncached = max(job.prompt_tokens - matched * self.block_size, 1)
        self._coming.update(job.keys)
        self.waiting.append(job)

    def held(self, keys: Sequence[int]) -> int:
        """Leading blocks in either tier, or on their way."""
        matched = len(self.cache.match(keys))
        if self.host:
            matched += self.host.run(keys, matched)
        while matched < len(keys) and keys[matched] in self._arriving:
            matched += 1
        return matched

    def expect(self, job: Job, blocks: int) -> None:
        """Its first blocks are being brought."""
        job.waits += 1
        self._arriving.update(job.keys[:blocks])

    def arrive(self, job: Job, expected: int, blocks: int) -> int:
        """The end of what was expected: ``blocks`` have come, 0 or all. How many have become readable: as
        many as there is room for."""
        job.waits -= 1
        self._arriving.subtract(job.keys[:expected])
        self._arriving += Counter()  # only what is left
        return self.cache.take_in(job.keys[:blocks])

    # ---- before a step -----------------------------------------------------------------------

    def schedule(self, now: float) -> Step | None:
        self._grow()
        self._ask_host()
        self._admit(now)
        works, budget = [], self.profile.chunk_tokens
        for job in self.running:
            tokens = job.remaining
            if tokens > 1:
                tokens = min(tokens, budget)
                budget -= tokens
            if tokens:
                works.append((job, tokens))
        self.step_began = now if works else None
        if not works:
            return None
        repeats = self._repeats(works)
        return Step(works, repeats, self._seconds(works, repeats))

    def _ask_host(self) -> None:
        """For the next few that wait: what the device lacks and host memory has."""
        if self.host is None:
            return
        for job in islice(self.waiting, PREFETCHED):
            if self._expects(job):
                continue
            start = len(self.cache.match(job.keys))
            blocks = self.host.run(job.keys, start)
            if blocks:
                self.host.use(job.keys[start : start + blocks])
                self.expect(job, start + blocks)
                self.loads.append(Load(job, start, blocks))

    def _grow(self) -> None:
        i = 0
        while i < len(self.running):
            job = self.running[i]
            if job.computed == job.blocks * self.block_size:
                while not self.cache.take(1):
                    newest = self.running.pop()
                    self._preempt(newest)
                    if newest is job:
                        return
                job.private += 1
            i += 1

    def _preempt(self, job: Job) -> None:
        self._release(job)
        self.waiting.appendleft(job)

    def _admit(self, now: float) -> None:
        if not self.waiting:
            return
        prefill = sum(job.remaining for job in self.running if job.remaining > 1)
        slots = self.profile.max_running - len(self.running)
        ready = [job for job in self.waiting if not self._expects(job)]
        for job in ready:
            if not slots or prefill >= self.profile.chunk_tokens:
                return
            if not self._take(job, room=len(self.running)):
                return
            self.waiting.remove(job)
            self.running.append(job)
            if job.admitted_at is None:
                job.admitted_at = now
                job.cached_tokens = job.computed
                self.prompt_tokens += job.prompt_tokens
                self.cached_tokens += job.computed
            slots -= 1
            prefill += job.remaining

    def _expects(self, job: Job) -> bool:
        """Whether blocks that it needs next are on their way, for itself or for another."""
        if job.waits or not self._arriving:
            return job.waits > 0
        matched = len(self.cache.match(job.keys))
        return matched < len(job.keys) and job.keys[matched] in self._arriving

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
        job.computed = job.length - 1 if whole else len(shared) * self.block_size
        job.copy = nodes[-1] if whole else None
        return True

    def _repeats(self, works: list[tuple[Job, int]]) -> int:
        """How many steps in which every job decodes and nothing starts, ends or runs out of blocks."""
        if any(job.started_at is None or job.remaining > 1 for job, _ in works):
            return 1
        left = min(job.completion_tokens - job.generated for job, _ in works)
        first = self._seconds(works, 1)
        most = min(left, int(MAX_RUN_S / first) if first else left)
        if most <= 1 or self.cache.available < len(works) * (most // self.block_size + 1):
            return 1
        return most

    def _seconds(self, works: list[tuple[Job, int]], repeats: int) -> float:
        profile = self.profile
        seconds, batch, context, prefills = 0.0, 0, 0, 0
        for job, tokens in works:
            if job.computed + tokens > job.prompt_tokens or tokens == 1:
                batch += 1
                context += job.computed
            else:
                seconds += profile.chunk_s(tokens, job.computed)
                prefills += 1
        if prefills:
            seconds += profile.prefill_base
        if batch:
            seconds += repeats * profile.decode_s(batch, context)
            seconds += profile.decode_token * batch * repeats * (repeats - 1) / 2
        return seconds * self._slowness

    def interrupt(self, step: Step, elapsed: float) -> Step:
        """``step`` cut at its first boundary not before ``elapsed`` seconds."""
        for repeats in range(1, step.repeats):
            seconds = self._seconds(step.works, repeats)
            if seconds >= elapsed:
                return Step(step.works, repeats, seconds)
        return step

    # ---- after a step ------------------------------------------------------------------------

    def commit(self, step: Step, now: float) -> Done:
        done = Done([], [])
        slow = step.seconds / step.repeats > SLOW_STEP_S
        self.steps += step.repeats
        self.step_seconds += step.seconds
        if step.repeats > 1:
            for job, _ in step.works:
                self._decode(job, step.repeats - 1)
        for job, tokens in step.works:
            if job.started_at is None:
                self.prefill_s += self.profile.chunk_s(tokens, job.computed) * self._slowness
            self._settle(job, tokens)
            if job.remaining:
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
        return done

    def _forget(self, job: Job) -> None:
        for key in job.keys[: job.prompt_tokens // self.block_size]:
            self._coming[key] -= 1
            if not self._coming[key]:
                del self._coming[key]

    def _settle(self, job: Job, tokens: int) -> None:
        job.computed += tokens
        if job.copy is not None:
            self.cache.unpin((job.copy,))
            job.copy = None
        self._seal(job)

    def _decode(self, job: Job, steps: int) -> None:
        """Steps that each compute the token which the one before drew."""
        for _ in range(steps):
            self._settle(job, 1)
            job.generated += 1
            if job.computed == job.blocks * self.block_size:
                taken = self.cache.take(1)
                assert taken
                job.private += 1

    def _seal(self, job: Job) -> None:
        while (len(job.nodes) + 1) * self.block_size <= job.computed:
            index = len(job.nodes)
            if index == len(job.keys):
                job.keys.append(next(_completion_keys))
            parent = job.nodes[-1] if job.nodes else None
            job.private -= 1
            job.nodes.append(self.cache.seal(job.keys[index], parent))

    def _release(self, job: Job) -> None:
        nodes = [*job.nodes, job.copy] if job.copy else job.nodes
        self.cache.unpin(nodes)
        self.cache.give(job.private)
        job.nodes, job.private, job.computed, job.copy = [], 0, 0, None

    # ---- what a worker reports ---------------------------------------------------------------

    @property
    def evictions(self) -> int:
        """From the last tier: what is gone for good."""
        return self.host.evictions if self.host else self.cache.evictions

    @property
    def late_hits(self) -> int:
        return self.host.late_hits if self.host else self.cache.late_hits

    @property
    def prefill_tokens(self) -> int:
        waiting = sum(job.remaining if job.started_at is not None else job.uncached for job in self.waiting)
        return waiting + sum(job.remaining for job in self.running if job.remaining > 1)

    @property
    def context_tokens(self) -> int:
        return sum(job.computed for job in self.running)
