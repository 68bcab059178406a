"""Random requests on small pools: every text is the oracle's, every account adds up after each step."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from warmfleet_proto.errors import BadRequest
from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.events import Removed, Stored
from warmfleet_worker.sequence import Ending, Reason, Request, new_sequence

from tests.unit.worker.driver import Driver

prompts = st.one_of(
    st.lists(st.integers(0, 1), min_size=1, max_size=24),  # many shared prefixes
    st.integers(1, 30).map(lambda n: list(range(n))),
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(6, 24),
        chunk=st.integers(2, 40),
        running=st.integers(1, 6),
        depth=st.integers(1, 2),
    )
    def start(self, blocks: int, chunk: int, running: int, depth: int) -> None:
        self.driver = Driver(blocks, chunk_tokens=chunk, max_running=running, depth=depth, vocab_size=4)
        self.requests: list[Request] = []
        self.dropped: set[int] = set()
        self.ahead: list[int] = []
        self.present: set[bytes] = set()
        self.seq = 0
        self.token_s: float | None = None  # what computing is believed to take

    @rule(
        prompt=prompts,
        max_tokens=st.integers(0, 12),
        choices=st.integers(1, 3),
        salt=st.sampled_from([b"", b"x"]),
        temperature=st.sampled_from([0.0, 1.0]),
        scored=st.booleans(),
        stop=st.booleans(),
    )
    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        choices: int,
        salt: bytes,
        temperature: float,
        scored: bool,
        stop: bool,
    ) -> None:
        request = self.driver.request(
            prompt,
            max_tokens,
            choices=choices,
            salt=salt,
            sampling=Sampling(temperature, seed=3),
            prompt_logprobs=1 if scored else None,
            stop_ids=frozenset([3] if stop else []),
        )
        size, total = self.driver.engine.block_size, self.driver.pool.total
        fits = -(-(len(prompt) + 1) // size) + choices - 1 <= total
        try:
            self.driver.scheduler.submit(request)
        except BadRequest:
            assert not fits or choices > self.driver.scheduler.limits.max_running
        else:
            assert fits
            self.requests.append(request)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.token_s is not None:
                self.driver.scheduler.fetching.pace.token_s = self.token_s
            self.driver.step()
            self.follow()

    @rule()
    def fail(self) -> None:
        self.driver.launch()
        if self.driver.scheduler.under_way:
            self.driver.fail()

    @rule(mood=st.sampled_from(["patient", "hasty", "racing"]))
    def stock_up(self, mood: str) -> None:
        if self.driver.larder is None:
            self.driver.stock_up()
        else:
            self.driver.larder.keep(self.driver.scheduler.cache)
        assert self.driver.larder is not None
        self.driver.larder.patience = 1e9 if mood == "racing" else None
        self.token_s = 1e6 if mood == "patient" else 1e-6

    @rule(
        data=st.data(),
        mood=st.sampled_from(["patient", "racing", "racing"]),
        more=st.integers(0, 9),
        some=st.integers(0, 3),
    )
    def ask_again(self, data: st.DataObject, mood: str, more: int, some: int) -> None:
        """For what can be fetched and is nowhere else."""
        if not self.requests:
            return
        before = np.frombuffer(data.draw(st.sampled_from(self.requests)).prompt, np.uint32).tolist()
        self.driver.run()
        self.stock_up(mood)
        self.displace()
        self.submit(before + [5] * more, 3, 1, b"", 0.0, False, False)
        self.step(1)
        self.bring(some, "", False)

    @rule()
    def displace(self) -> None:
        cache = self.driver.scheduler.cache
        cache.release(cache.allocate(cache.available) or [])
        self.driver.log.publish(cache.take_changes())
        self.follow()

    @rule(most=st.integers(0, 4), failure=st.sampled_from(["", "broken"]), over=st.booleans())
    def bring(self, most: int, failure: str, over: bool) -> None:
        self.driver.bring(most, failure, over=over)
        self.follow()

    @rule(prompt=prompts)
    def bring_ahead(self, prompt: list[int]) -> None:
        """Nobody waits for it; who comes may join."""
        sequence = new_sequence(self.driver.request(prompt, 0))
        fetch = self.driver.scheduler.bring(sequence, self.driver.now)
        if fetch is not None:
            self.ahead.append(fetch)

    @rule()
    def let_go(self) -> None:
        if self.ahead:
            self.driver.scheduler.let_go(self.ahead.pop())

    @rule()
    def bring_beside_a_step(self) -> None:
        """A fetch arrives while the device computes."""
        self.driver.launch()
        if self.driver.scheduler.under_way:
            self.driver.bring(3)
            self.driver.step()
            self.follow()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.requests:
            request = data.draw(st.sampled_from(self.requests))
            self.driver.scheduler.drop(request.key, Ending(Reason.CANCELLED))
            self.dropped.add(request.key.handle)

    def follow(self) -> None:
        """As a router does: apply every batch, compare with what is readable."""
        for batch in self.driver.log.since(self.seq) or []:
            for event in batch.events:
                if isinstance(event, Stored):
                    assert not self.present & set(event.hashes)
                    self.present |= set(event.hashes)
                elif isinstance(event, Removed):
                    assert self.present >= set(event.hashes)
                    self.present -= set(event.hashes)
            self.seq = batch.seq
        assert self.present == set(self.driver.scheduler.cache._nodes)

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.run()
        self.follow()
        for request in self.requests:
            for choice in range(request.params.choices):
                text = self.driver.text(request, choice)
                assert text.ending is not None
                expected = self.driver.expected(request, choice)
                assert text.token_ids == expected[: len(text.token_ids)]
                if text.ending.reason is Reason.LENGTH:
                    assert text.token_ids == expected
                elif text.ending.reason is Reason.STOP:
                    assert expected[len(text.token_ids)] == text.ending.stop_id == 3
                else:
                    cancelled = text.ending.reason is Reason.CANCELLED
                    assert cancelled == (request.key.handle in self.dropped) or request.failures
        assert self.driver.pool.pinned == 0
        assert not self.driver.scheduler.requests
        fetching = self.driver.scheduler.fetching
        assert not fetching.busy
        assert fetching._landed == 0
        assert not fetching._coming
        assert not fetching._races
        assert not self.driver.larder or self.driver.larder.lent == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
