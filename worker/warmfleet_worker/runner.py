"""The one loop of a worker: schedule, launch and finish in the engine's thread, commit, publish.

All state of the scheduler belongs to the event loop; the engine's thread sees plans and nothing else. With
an engine of depth 2 the next step is planned and launched before the loop waits for the one that runs.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn, Protocol

from warmfleet_worker.engine.base import Engine, Finish, Plan, StepResult
from warmfleet_worker.events import Change, PresenceLog
from warmfleet_worker.fetch import Arrival, Fetch, Turn
from warmfleet_worker.scheduler import Scheduler
from warmfleet_worker.sequence import Ending, Key, Output, Request, Sequence
from warmfleet_worker.source import Source

_log = logging.getLogger(__name__)

_REST_S = 1.0  # the longest wait in which nothing is looked at
_PACE_S = 0.005  # between batches of presence events while steps follow one another
_BROUGHT_PACE_S = 0.25  # while blocks come and nothing else happens: telling of them would slow them down

Sink = Callable[[list[Output]], None]
"""Takes what a step made for one gateway."""


class Listener(Protocol):
    """Told at once, inside the loop: must not block."""

    def changed(self) -> None:
        """Presence or the set of requests changed."""

    def booked(self, booking: int) -> None:
        """A booked request was accepted."""


class Carrier(Protocol):
    """Brings blocks from one source. Called inside the loop: must not block."""

    def begin(self, fetch: Fetch) -> None:
        """Answers through ``Runner.arrived``, later, and the last time with ``over``."""

    def abandon(self, fetch_id: int) -> None:
        """Soon an end, or none if it has come already."""

    def turn(self, fetch_id: int) -> None:
        """Bring the rest from its end on, if possible."""


class Below(Protocol):
    """The tiers below the device."""

    def noted(self, changes: list[Change]) -> list[Change]:
        """Takes what changed on the device; gives what changed below."""


class Runner:
    def __init__(self, engine: Engine, scheduler: Scheduler, presence: PresenceLog) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.presence = presence
        self.sinks: dict[str, Sink] = {}
        self.listeners: set[Listener] = set()
        self.carriers: dict[Source, Carrier] = {}
        self.below: Below | None = None
        self.closing = False
        self.leaves_at = 0.0  # at the latest, while it drains
        self.on_outputs: Callable[[list[Output]], None] = lambda _: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._launched: deque[Finish] = deque()  # the engine thread's
        self._wake = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._step_began: float | None = None
        self._published = 0.0
        self._carried: dict[int, Carrier] = {}  # by fetch under way
        self._awaited: dict[int, asyncio.Event] = {}  # its end

    @staticmethod
    def now() -> float:
        return time.monotonic()

    @property
    def step_age_s(self) -> float:
        return 0.0 if self._step_began is None else self.now() - self._step_began

    @property
    def bookings(self) -> list[int]:
        """Bookings of all live requests."""
        return [r.booking for r in self.scheduler.requests.values() if r.booking]

    def submit(self, request: Request) -> None:
        """Raises BadRequest or Rejected."""
        self.scheduler.submit(request)
        self._at_rest.clear()
        self._wake.set()
        if request.booking:
            for listener in self.listeners:
                listener.booked(request.booking)
        self._tell_change()

    def drop(self, key: Key, ending: Ending) -> None:
        self.scheduler.drop(key, ending)
        self._wake.set()

    def nudge(self) -> None:
        """Blocks have become free, or something else that may let a request start."""
        self._wake.set()
        self._tell_change()

    def arrived(self, arrival: Arrival) -> None:
        """What a carrier says."""
        self.scheduler.arrived(arrival, self.now())
        if arrival.over:
            del self._carried[arrival.id]
            if awaited := self._awaited.pop(arrival.id, None):
                awaited.set()
        self._wake.set()

    async def bring(self, sequence: Sequence, within_s: float) -> bool:
        """Fetches what a sequence lacks that no request waits for. Returns when it is there, or after
        ``within_s``; what is on its way when the call is cancelled is let go. False if nothing can be had or
        there is no room."""
        fetch_id = self.scheduler.bring(sequence, self.now())
        if fetch_id is None:
            return False
        over = self._awaited[fetch_id] = asyncio.Event()
        self._give_orders()
        try:
            async with asyncio.timeout(within_s):
                await over.wait()
        except TimeoutError:
            pass
        finally:
            self.scheduler.let_go(fetch_id)
            self._give_orders()
        return True

    async def warm_up(self) -> None:
        """Runs in the engine's thread, since plans of cuDNN belong to the thread that made them."""
        _log.info("warming up")
        loop, chunk_tokens = asyncio.get_running_loop(), self.scheduler.limits.chunk_tokens
        await loop.run_in_executor(self._thread, self.engine.warm_up, chunk_tokens)

    async def run(self) -> None:
        """Forever; cancel to stop. The thread ends with the step under way."""
        try:
            while True:
                if self.scheduler.idle:
                    self._at_rest.set()
                    self._wake.clear()
                    await self._wake.wait()
                await self._step()
        finally:
            self._thread.shutdown(wait=False)

    async def drain(self, deadline_s: float) -> int:
        """Admits nothing more; returns how many requests were left when the time was over."""
        self.scheduler.draining = True
        self.leaves_at = self.now() + deadline_s
        self._tell_change()
        try:
            async with asyncio.timeout(deadline_s):
                while not self.scheduler.idle:
                    self._at_rest.clear()
                    await self._at_rest.wait()
        except TimeoutError:
            pass
        return len(self.scheduler.requests)

    def forget(self) -> bool:
        """Drops the whole cache. False, and nothing done, while anything runs, waits, is fetched or lent, and
        if there are tiers below: a cleared log says that nothing is readable in any tier."""
        if not self.scheduler.idle or self.scheduler.cache.pool.pinned or self.below:
            return False
        self.scheduler.cache.clear()
        self.publish()
        return True

    def close(self) -> None:
        """Lets everyone who follows this worker leave."""
        self.closing = True
        self._tell_change()

    async def _step(self) -> None:
        """Launches one more step. If no further one can be under way then, finishes the oldest."""
        now = self.now()
        self._wake.clear()
        plan = self.scheduler.schedule(now)
        self._give_orders()
        self._deliver(self.scheduler.take_outputs())
        under_way = self.scheduler.under_way
        if not under_way:
            self._publish_in_turn(_BROUGHT_PACE_S if self._carried else 0.0)
            await self._wait()
            return
        if self._step_began is None:
            self._step_began = now
        if plan is not None and under_way < self.engine.depth:
            await self._in_thread(plan, False)
            self._publish_in_turn(_PACE_S)
            return
        await self._finish(plan)
        now = self.now()
        self.scheduler.totals.step_seconds += now - self._step_began
        self._step_began = now if self.scheduler.under_way else None
        self._give_orders()
        outputs = self.scheduler.take_outputs()
        # Who has had an answer asks again at once, and must find what it made announced.
        answered = any(output.started or output.ending for output in outputs)
        self._publish_in_turn(0.0 if answered or self.scheduler.idle else _PACE_S)
        self._deliver(outputs)

    async def _wait(self) -> None:
        """Waits for whatever can make a step possible: a request, the arrival of a fetch, or the end of the
        time that one is given."""
        if self.scheduler.idle:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self.scheduler.next_timer - self.now(), _REST_S)):
                await self._wake.wait()

    def _give_orders(self) -> None:
        for order in self.scheduler.take_orders():
            if isinstance(order, Fetch):
                self._carried[order.id] = self.carriers[order.source]
                self._carried[order.id].begin(order)
            elif carrier := self._carried.get(order.id):
                (carrier.turn if isinstance(order, Turn) else carrier.abandon)(order.id)

    async def _finish(self, plan: Plan | None) -> None:
        """Launches the plan, and commits the oldest step under way when it has finished."""
        try:
            result = await self._in_thread(plan, True)
        except Exception as error:
            _log.exception("an engine step failed")
            self.scheduler.fail(f"the engine failed: {type(error).__name__}", self.now())
            return
        assert result is not None
        if result.delay_s > 0:
            await asyncio.sleep(result.delay_s)
        self.scheduler.commit(result, self.now())

    async def _in_thread(self, plan: Plan | None, finish: bool) -> StepResult | None:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._turn, plan, finish)

    def _turn(self, plan: Plan | None, finish: bool) -> StepResult | None:
        """Launches the plan and finishes the oldest step launched. Runs in the engine's thread."""
        if plan is not None:
            self._launched.append(self._launch(plan))
        if not finish:
            return None
        try:
            return self._launched.popleft()()
        except Exception:
            while self._launched:  # void as well, but the device has to be done with them
                with suppress(Exception):
                    self._launched.popleft()()
            raise

    def _launch(self, plan: Plan) -> Finish:
        """A step that cannot be launched fails when its turn has come."""
        try:
            return self.engine.launch(plan)
        except Exception as error:
            failure = error

        def fail() -> NoReturn:
            raise failure

        return fail

    def publish(self) -> None:
        """Publishes what has become readable in any tier, or is so no longer; of a step, when it has
        finished."""
        self._published = self.now()
        changes = self.scheduler.cache.take_changes()
        if self.below is not None:
            changes += self.below.noted(changes)
        if changes:
            self.presence.publish(changes)
            self._tell_change()

    def _publish_in_turn(self, pace_s: float) -> None:
        """Publishes unless the last batch is younger than ``pace_s``. Each batch costs its readers a message,
        so steps that follow one another quickly share one."""
        if self.now() - self._published >= pace_s:
            self.publish()

    def _deliver(self, outputs: list[Output]) -> None:
        """One call a gateway."""
        if not outputs:
            return
        by_gateway: dict[str, list[Output]] = {}
        for output in outputs:
            by_gateway.setdefault(output.request.key.gateway, []).append(output)
        for gateway, theirs in by_gateway.items():
            if sink := self.sinks.get(gateway):
                sink(theirs)
        self.on_outputs(outputs)
        if any(output.ending for output in outputs):
            self._tell_change()

    def _tell_change(self) -> None:
        for listener in self.listeners:
            listener.changed()
