"""Drives a scheduler and the sim engine in one thread: schedule, execute, commit, until all have ended.

At depth 2 a step is planned while the one before it is under way, and computed as late as may be. Free
blocks hold a value of their own, so that it shows when a step reads one, and when it writes one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from warmfleet_proto.hashing import chain, root_hash
from warmfleet_worker.admission import Limits
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.engine.base import Finish, Logprobs, Plan, Sampling, StepResult
from warmfleet_worker.engine.sim import SimEngine, oracle
from warmfleet_worker.events import PresenceLog
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.sequence import Ending, Key, Output, Params, Reason, Request, Started

from tests.unit.worker.larder import Larder

POISON = 0xDEAD


class Text:
    """What one choice has delivered."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.ending: Ending | None = None


class Step(NamedTuple):
    plan: Plan
    result: StepResult


class Driver:
    def __init__(
        self,
        total_blocks: int = 64,
        *,
        block_size: int = 4,
        max_context: int = 4096,
        max_running: int = 8,
        max_waiting: int = 1000,
        chunk_tokens: int = 64,
        vocab_size: int = 32_000,
        depth: int = 1,
    ) -> None:
        self.engine = SimEngine(
            block_size=block_size,
            total_blocks=total_blocks,
            vocab_size=vocab_size,
            max_context=max_context,
            depth=depth,
        )
        context = min(max_context, total_blocks * block_size)
        limits = Limits(block_size, context, max_running, max_waiting, chunk_tokens)
        self.scheduler = Scheduler(limits, total_blocks)
        self.log = PresenceLog(epoch=1)
        self.now = 0.0
        self.steps: list[Step] = []
        self.texts: dict[tuple[Key, int], Text] = {}
        self.started: dict[Key, Started] = {}
        self.prompt_logprobs: dict[Key, tuple[Logprobs, ...]] = {}
        self.larder: Larder | None = None
        self.lent: Callable[[], list[int]] = list  # blocks pinned for peers
        self._handles = count(1)
        self._launched: deque[tuple[Plan, Finish]] = deque()

    def stock_up(self) -> Larder:
        """What is readable now can be fetched from now on."""
        self.larder = Larder(self.engine)
        self.larder.keep(self.scheduler.cache)
        self.scheduler.fetching.supplies = [self.larder]
        return self.larder

    def bring(self, most: int = 1_000_000, failure: str = "", *, over: bool = True) -> bool:
        """The oldest fetch goes on; false when there is none."""
        arrival = self.larder.bring(most, failure, over=over) if self.larder else None
        if arrival is not None:
            self.scheduler.arrived(arrival, self.now)
            self.log.publish(self.scheduler.cache.take_changes())
            self.scheduler.check_integrity(self.lent())
            self._poison()  # what came for nothing
        return arrival is not None

    @property
    def pool(self) -> BlockPool:
        return self.scheduler.cache.pool

    def root(self, salt: bytes = b"") -> bytes:
        return root_hash(self.engine.fingerprint, self.engine.block_size, salt=salt)

    def request(
        self,
        prompt: Sequence[int],
        max_tokens: int = 8,
        *,
        salt: bytes = b"",
        deadline: float | None = None,
        choices: int = 1,
        stop_ids: frozenset[int] = frozenset(),
        prompt_logprobs: int | None = None,
        sampling: Sampling | None = None,
        drawn: int = 0,
    ) -> Request:
        packed = np.array(prompt, np.uint32).tobytes()
        root = self.root(salt)
        return Request(
            Key("gateway", next(self._handles)),
            "request",
            root,
            packed,
            chain(root, packed, self.engine.block_size),
            Params(sampling or Sampling(), max_tokens, choices, stop_ids, prompt_logprobs, drawn),
            submitted=self.now,
            deadline=deadline,
        )

    def submit(self, prompt: Sequence[int], max_tokens: int = 8, **params: object) -> Request:
        request = self.request(prompt, max_tokens, **params)  # type: ignore[arg-type]
        self.scheduler.submit(request)
        return request

    def schedule(self) -> Plan | None:
        self.now += 1.0
        plan = self.scheduler.schedule(self.now)
        if self.larder:
            self.larder.order(self.scheduler.take_orders())
        self._take_outputs()
        self._poison()
        return plan

    def launch(self) -> None:
        """Plans and launches as many steps as may be under way."""
        while len(self._launched) < self.engine.depth and (plan := self.schedule()):
            self._launched.append((plan, self.engine.launch(plan)))

    def commit(self, plan: Plan) -> Step:
        """Executes and commits what ``schedule`` gave."""
        return self._finish(plan, self.engine.launch(plan))

    def schedule_and_commit_in(self, seconds: float) -> None:
        """One whole step that takes so long."""
        plan = self.schedule()
        assert plan is not None
        self.now += seconds - 1.0
        self.commit(plan)
        self.now -= 1.0  # of the next ``schedule``

    def _finish(self, plan: Plan, finish: Finish) -> Step:
        result = finish()
        self._check_poison()
        self.now += 1.0
        self.scheduler.commit(result, self.now)
        self.log.publish(self.scheduler.cache.take_changes())
        self._take_outputs()
        self.scheduler.check_integrity(self.lent())
        self._poison()
        self.steps.append(Step(plan, result))
        return self.steps[-1]

    def step(self) -> Step | None:
        """One whole step; None when there was nothing to do."""
        self.launch()
        if not self._launched:
            self.log.publish(self.scheduler.cache.take_changes())
            return None
        return self._finish(*self._launched.popleft())

    def run(self, max_steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if self.step() is None and not self.bring():
                assert self.scheduler.idle, "work is left that cannot run"
                return
        raise AssertionError(f"not idle after {max_steps} steps")

    def finish(self, prompt: Sequence[int], max_tokens: int = 8, **params: object) -> Request:
        request = self.submit(prompt, max_tokens, **params)
        self.run()
        return request

    def end(self, request: Request) -> Ending | None:
        """How its first choice ended."""
        return self.text(request).ending

    def text(self, request: Request, choice: int = 0) -> Text:
        return self.texts.setdefault((request.key, choice), Text())

    def expected(self, request: Request, choice: int = 0) -> list[int]:
        """The oracle's completion at full length."""
        prompt = np.frombuffer(request.prompt, np.uint32).tolist()
        return oracle(
            request.root,
            prompt,
            request.max_tokens,
            sampling=request.params.sampling,
            choice=choice,
            vocab_size=self.engine.vocab_size,
        )

    def fail(self) -> None:
        """The oldest step under way raises instead of finishing."""
        self._launched.clear()
        self.scheduler.fail("broken", self.now)
        self.log.publish(self.scheduler.cache.take_changes())
        self._take_outputs()
        self.scheduler.check_integrity(self.lent())

    def check_exact(self, request: Request) -> None:
        """Every choice delivered the oracle's tokens and ended by its length."""
        for choice in range(request.params.choices):
            text = self.text(request, choice)
            assert text.ending == Ending(Reason.LENGTH)
            assert text.token_ids == self.expected(request, choice)

    def _poison(self) -> None:
        if isinstance(self.engine, SimEngine):
            self.engine.pool[self.pool._free] = POISON

    def _check_poison(self) -> None:
        if isinstance(self.engine, SimEngine):
            assert (self.engine.pool[self.pool._free] == POISON).all(), "a step wrote into a free block"

    def _take_outputs(self) -> None:
        for output in self.scheduler.take_outputs():
            self._record(output)

    def _record(self, output: Output) -> None:
        text = self.text(output.request, output.choice)
        assert text.ending is None, "an output after the ending"
        assert output.position == len(text.token_ids), "a gap or a repetition"
        text.token_ids += output.token_ids
        text.logprobs += output.logprobs
        text.ending = output.ending
        if output.started:
            assert output.request.key not in self.started
            self.started[output.request.key] = output.started
            self.prompt_logprobs[output.request.key] = output.prompt_logprobs
