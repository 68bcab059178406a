"""The replay's worker does what the real scheduler does, step for step."""

from array import array
from collections import deque
from random import Random

import pytest
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_proto.limits import KEY_BYTES
from warmfleet_router.replay.job import Job
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.worker import Worker
from warmfleet_worker.admission import Limits
from warmfleet_worker.engine.base import Drawn, Plan, Sampling, StepResult
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.sequence import Key, Params, Request

BLOCK = 4
ROOT = root_hash(b"model", BLOCK)


class Pair:
    """The same requests in the real scheduler and in the replay's worker."""

    def __init__(self, blocks: int, chunk: int, slots: int, depth: int, by_cost: bool) -> None:
        limits = Limits(BLOCK, blocks * BLOCK, slots, 10_000, chunk)
        self.real = Scheduler(limits, blocks)
        profile = Profile(
            chunk_tokens=chunk,
            max_running=slots,
            depth=depth,
            decode_base=0.01,
            prefill_token=0.001,
            prefill_pair=0.0001,
        )
        self.modelled = Worker(profile, BLOCK, blocks, by_cost=by_cost)
        if by_cost:
            self.real.cache.cost = lambda depth: profile.chunk_s(BLOCK, depth * BLOCK)
        self._planned: deque[Plan] = deque()  # the real one's steps under way
        self._handles = 0
        self._token = 1 << 20
        self._now = 0.0

    def submit(self, prompt: list[int], completion_tokens: int) -> None:
        self._handles += 1
        packed = array("I", prompt).tobytes()
        hashes = chain(ROOT, packed, BLOCK)
        params = Params(Sampling(), max_tokens=completion_tokens)
        self.real.submit(Request(Key("g", self._handles), "", ROOT, packed, hashes, params, 0.0))
        keys = array("Q", b"".join(h[:KEY_BYTES] for h in hashes))
        self.modelled.interrupt(0.0)
        self.modelled.submit(Job(self._handles, keys, len(prompt), completion_tokens, 0.0))

    def step(self) -> bool:
        """Both plan what they may and finish a step, or as many real ones as the model takes in one go;
        false when both are idle."""
        while self.modelled.schedule(self._now):
            pass
        self._plan()
        if not self.modelled.under_way:
            return False
        took = self.modelled.under_way[0].seconds / self.modelled.under_way[0].repeats
        for repeat in range(self.modelled.under_way[0].repeats):
            if repeat:
                self._plan()
            plan = self._planned.popleft()
            if repeat == 0:
                works = self.modelled.under_way[0].works
                assert [(w.start, len(w.token_ids)) for w in plan.works] == [w[1:] for w in works]
                assert len(plan.copies) == sum(w.job.copy is not None for w in works)
            self._now += took
            self.real.commit(StepResult(tuple(self._drawn(plan))), self._now)
        done = self.modelled.commit(self._now)
        outputs = self.real.take_outputs()
        work = {o.request.key.handle: o.started.work_s for o in outputs if o.started}
        assert work == pytest.approx({job.booking: job.work_s for job in done.started})
        started = {o.request.key.handle: o.started.cached_tokens for o in outputs if o.started}
        assert started == {job.booking: job.cached_tokens for job in done.started}
        self.compare()
        return True

    def _plan(self) -> None:
        while len(self._planned) < self.modelled.profile.depth and (plan := self.real.schedule(self._now)):
            self._planned.append(plan)

    def compare(self) -> None:
        load, cache = self.real.load(), self.modelled.cache
        assert (load.running, load.waiting) == (len(self.modelled.running), len(self.modelled.waiting))
        assert (load.free_blocks, load.cached_blocks) == (cache.free, cache.cached)
        assert load.prefill_tokens == self.modelled.prefill_tokens
        assert load.context_tokens == self.modelled.context_tokens
        assert self.real.totals.work == self.modelled.work
        assert self.real.cache.evictions == cache.evictions
        assert self.real.cache.late_hits == cache.late_hits
        self.real.check_integrity()

    def _drawn(self, plan: Plan) -> list[Drawn]:
        """Tokens that no other request ever has: only prompts are shared."""
        drawn = []
        for work in plan.works:
            self._token += 1
            drawn.append(Drawn((self._token,) if work.sampling else ()))
        return drawn


@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_random_requests_a_seed(seed: int, depth: int, by_cost: bool) -> None:
    random = Random(seed)
    blocks, chunk, slots = random.choice([24, 40, 200]), random.choice([6, 16, 64]), random.choice([2, 8])
    pair = Pair(blocks, chunk, slots, depth, by_cost)
    stems = [[random.randrange(1000) for _ in range(40)] for _ in range(4)]
    left = 100
    while left or pair.step():
        while left and random.random() < 0.4:
            stem = random.choice(stems)
            tail = [random.randrange(1000) for _ in range(random.randrange(0, 9))]
            pair.submit(stem[: random.randrange(1, 40)] + tail, random.randrange(1, 30))
            left -= 1
        pair.step()
    assert pair.modelled.cache.available == pair.modelled.cache.total


def test_a_run_of_steps_whose_room_a_peer_pins_goes_on() -> None:
    """A pull pins what it reads at its source, in the middle of steps that are taken in one go."""
    worker = Worker(Profile(max_running=1, decode_base=0.01), BLOCK, 6)

    worker.submit(Job(1, array("Q", [1, 2]), 2 * BLOCK, 1, 0.0))
    worker.schedule(0.0)
    worker.commit(0.0)
    worker.submit(Job(2, array("Q", [3]), BLOCK, 4 * BLOCK, 0.0))
    worker.schedule(0.0)
    worker.commit(0.0)
    run = worker.schedule(0.0)
    assert run is not None
    assert run.repeats > BLOCK
    read = worker.cache.match([1, 2])
    worker.cache.pin(read)
    worker.commit(0.0)
    assert not worker.running
    worker.cache.unpin(read)
    assert worker.cache.available == 6


def test_a_long_prompt_that_began_meanwhile_makes_way_for_who_came_first() -> None:
    """As in tests/unit/worker/test_fetching.py: a prefix of ten blocks is brought, and three tokens left."""
    modelled = Worker(Profile(chunk_tokens=8), BLOCK, 64)
    first = Job(1, array("Q", range(10)), 43, 2, 0.0)
    second = Job(2, array("Q", range(100, 115)), 60, 2, 0.0)
    for job in (first, second):
        modelled.submit(job)
    modelled.flights.expect(first, 10)
    assert modelled.schedule(0.0)
    modelled.submit(Job(3, array("Q", [200]), 4, 2, 0.0))
    modelled.flights.arrive(first, 10, 10)
    modelled.commit(0.0)
    step = modelled.schedule(0.0)
    assert step
    assert [(job, tokens) for job, _, tokens in step.works] == [(first, 3), (second, 5)]
