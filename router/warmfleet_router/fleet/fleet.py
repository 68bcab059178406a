"""All workers that the router knows: which of them are healthy, and who may be placed on.

Health comes from the age of messages and from how requests ended, never from keepalives. Times are
monotonic seconds.
"""

from collections.abc import Sequence

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt
from warmfleet_proto.limits import STUCK_AFTER_S

from warmfleet_router.fleet.agreement import Agreement
from warmfleet_router.fleet.worker import SLOW_START_S, TOLD, Report, State, Worker
from warmfleet_router.prices.pricing import Rates
from warmfleet_router.view import Counters

EJECT_AFTER = 5  # consecutive dropped requests
EJECTION_S = 5.0  # times the number of ejections lately
EJECTION_CAP_S = 60.0
EJECTION_MEMORY_S = 60.0  # after so long without failures past ejections are forgotten
MAX_EJECTED = 0.5  # of the fleet
PANIC_BELOW = 0.5  # with a smaller share of the fleet healthy, whoever can be reached is used
MOST_SECONDS = 1e9  # that a worker can have computed
OWN_STALL_S = 0.5  # between two ticks: silence in it is ours, not the workers'


class Fleet:
    """All known workers, by address."""

    def __init__(self, counters: Counters) -> None:
        self.workers: dict[str, Worker] = {}
        self._counters = counters
        self._ticked_at: float | None = None
        self._began_at: float | None = None  # the first worker came

    def named(self, name: str) -> Worker | None:
        return next((w for w in self.workers.values() if w.identity and w.identity.name == name), None)

    # ---- what is heard

    def incarnated(self, worker: Worker, epoch: int, now: float) -> bool:
        """Takes note of the worker's epoch; True if it is a new one, which owes nothing for what the old one
        did: neither load nor failures."""
        if worker.epoch == epoch:
            return False
        worker.epoch = epoch
        worker.report = Report()
        worker.booked.left = worker.booked.left_tokens = 0
        worker.sending_until = 0.0
        worker.hits.begin_epoch()
        worker.agreement = Agreement()
        worker.failures = worker.ejections = 0
        worker.ejected_until = 0.0
        worker.full_at = now if self._is_young(now) else now + SLOW_START_S
        return True

    def _is_young(self, now: float) -> bool:
        """Whether the fleet itself has just come. Then nobody starts slowly: no older worker could take the
        load instead, and of two newcomers the earlier one must not look several times cheaper."""
        if self._began_at is None:
            self._began_at = now
        return now - self._began_at < SLOW_START_S

    def heard(self, worker: Worker, now: float) -> None:
        worker.heard_at = now
        worker.connected = True
        worker.stuck = False

    def broken(self, worker: Worker) -> None:
        worker.connected = worker.stuck = False

    def reported(self, worker: Worker, load: pb.WorkerLoad, now: float) -> None:
        """Takes over the load and learns from what the steps since the last report took.

        Raises Corrupt for seconds that are none: they would spoil every price.
        """
        for name in ("step_seconds_total", "step_age_s", "clock_s", "leaves_s"):
            if not 0.0 <= getattr(load, name) <= MOST_SECONDS:
                raise Corrupt(f"{name} = {getattr(load, name)}", worker.address)
        before = worker.report
        worker.report = Report(at=now, **{name: getattr(load, name) for name in TOLD})
        worker.booked.left = worker.booked.left_tokens = 0
        worker.draining = load.draining
        worker.leaves_s = load.leaves_s
        worker.clock_ahead_s = load.clock_s - now
        if not worker.anonymous:
            worker.hits.report(now, load.cached_tokens_total, load.prompt_tokens_total)
        _learn_step(worker.rates, before, worker.report)

    # ---- how requests end

    def succeeded(self, worker: Worker) -> None:
        worker.failures = 0

    def dropped(self, worker: Worker, now: float) -> None:
        """It has failed one more request. EJECT_AFTER in a row eject it for a while, unless MAX_EJECTED of
        the fleet are out already."""
        worker.dropped += 1
        worker.failures += 1
        if worker.failures < EJECT_AFTER or worker.state(now) is not State.HEALTHY:
            return
        out = sum(w.state(now) is State.EJECTED for w in self.workers.values())
        if out + 1 > MAX_EJECTED * len(self.workers):
            return
        if now - worker.ejected_until > EJECTION_MEMORY_S:
            worker.ejections = 0
        worker.failures = 0
        worker.ejections += 1
        worker.all_ejections += 1
        worker.ejected_until = now + min(EJECTION_S * worker.ejections, EJECTION_CAP_S)
        worker.full_at = worker.ejected_until + SLOW_START_S
        self._counters.ejections += 1

    # ---- time

    def tick(self, now: float) -> None:
        """Notices silent workers. If this process was stopped itself, they are given that time again."""
        stalled = self._ticked_at is not None and now - self._ticked_at > OWN_STALL_S
        self._ticked_at = now
        for worker in self.workers.values():
            if worker.heard_at is None:
                continue
            if stalled:
                worker.heard_at = now
            patience = worker.identity.silence_s if worker.identity else STUCK_AFTER_S
            worker.stuck = worker.connected and now - worker.heard_at > patience


def usable(workers: Sequence[Worker], now: float) -> tuple[list[Worker], bool]:
    """Who may be placed on; and whether in panic: too few are healthy, so all that can be reached may be."""
    states = [(worker, worker.state(now)) for worker in workers]
    healthy = [worker for worker, state in states if state is State.HEALTHY]
    counted = sum(state is not State.JOINING and state is not State.DRAINING for _, state in states)
    if not counted or len(healthy) >= PANIC_BELOW * counted:
        return healthy, False
    reachable = (State.HEALTHY, State.STUCK, State.EJECTED)
    return [worker for worker, state in states if state in reachable], True


def _learn_step(rates: Rates, before: Report, after: Report) -> None:
    """What a decode step takes, if the steps between the two reports only decoded."""
    was, now = before.work, after.work
    steps = now.decode_steps - was.decode_steps
    sequences = now.decode_sequences - was.decode_sequences
    context = now.decode_context - was.decode_context
    seconds = after.step_seconds_total - before.step_seconds_total
    if not before.at or now.prompt_steps != was.prompt_steps:
        return
    if steps > 0 and min(sequences, context, seconds) >= 0:
        rates.observe_step(sequences / steps, context / steps, seconds / steps)
