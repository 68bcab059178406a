"""The workers' side of the router: who joins and leaves, what they announce, who can be reached.

Ties fleet, groups, cursors and books together. The order of its updates matters: it keeps an index entry from
outliving the incarnation of the worker that it belongs to.
"""

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt, Rejected
from warmfleet_proto.limits import KEY_BYTES, STUCK_AFTER_S

from warmfleet_router.booking import Booking, Ledger
from warmfleet_router.events.mirror import Mirror
from warmfleet_router.fleet.fleet import Fleet
from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.worker import Identity, State, Worker
from warmfleet_router.index.approximate import Approximate
from warmfleet_router.index.cursor import Clear, Cursor, Instruction, Remove, Store, WatchAgain, keys_of
from warmfleet_router.prices.pricing import shared_prefill, starting_rates
from warmfleet_router.routing import Routing
from warmfleet_router.view import Counters

MAX_NAME_CHARS = 128
MAX_FINGERPRINT_BYTES = 64
MAX_BLOCK_SIZE = 1 << 16
MOST_SILENCE_S = 600.0
MAX_MODELS = 1024  # further names of one worker
FADE_S = 1.0  # so long what an answered request has made counts as held, until the worker has announced it
SLACK_BLOCKS = 2  # that an answer may find less than expected: the last of a prompt is computed in any case


class Roster:
    """Workers go by their address: it is what is configured, and known before their name."""

    def __init__(self, ledger: Ledger, counters: Counters, routing: Routing) -> None:
        self.fleet = Fleet(counters)
        self.groups: dict[tuple[bytes, int], Group] = {}
        self.models: dict[str, list[Group]] = {}  # by served name
        self._cursors: dict[str, Cursor] = {}
        self._fading: deque[tuple[float, Booking]] = deque()  # answered; until when their marks count
        self.ledger = ledger
        self.counters = counters
        self.routing = routing

    def group_of(self, worker: Worker) -> Group | None:
        return self.groups.get(worker.identity.kind) if worker.identity else None

    def cursor(self, address: str) -> Cursor:
        return self._cursors[address]

    def complete(self, address: str) -> bool:
        """Whether all is known that it announces to hold; a silent one announces nothing."""
        return self.fleet.workers[address].guess is not None or self._cursors[address].live

    # ---- coming and going

    def add(self, address: str) -> None:
        """A worker that is to be watched. It is joining until its Status has told who it is."""
        if address not in self.fleet.workers:
            self.fleet.workers[address] = Worker(address, starting_rates((), shared_prefill()))
            self._cursors[address] = Cursor(self.counters)

    def remove(self, address: str, now: float) -> None:
        """It is no longer configured. Requests that it has go on, and their bookings end as others do."""
        self._retire(self.fleet.workers.pop(address), now)
        del self._cursors[address]

    def joined(self, address: str, status: pb.StatusResponse, now: float) -> None:
        """Its Status has told who it is. Raises Corrupt for nonsense, and Rejected if its name is taken or
        the index takes no more workers."""
        identity = _identity(status, address)
        worker = self.fleet.workers[address]
        other = self.fleet.named(identity.name)
        if other is not None and other is not worker:
            if other.connected:
                raise Rejected(
                    f"worker {identity.name} at {address} is known at {other.address} already: "
                    "each needs a name of its own"
                )
            self._retire(other, now)
        if worker.identity is None or worker.identity != identity:
            self._seat(worker, identity, now)
        if self.fleet.incarnated(worker, status.epoch, now):
            self._forget(worker)
        self._also(worker, status)
        self._refresh(worker, now)

    def _also(self, worker: Worker, status: pb.StatusResponse) -> None:
        """Its further names, which may change with every Status: adapters are loaded while it runs."""
        models = frozenset(status.models) - {status.model}
        if models != worker.models:
            worker.models = models
            self._name_models()
        worker.adapters = models.intersection(status.adapters)

    def broken(self, address: str, now: float) -> None:
        """Its stream broke, or it does not answer."""
        worker = self.fleet.workers.get(address)
        if worker is not None and worker.connected:
            self.fleet.broken(worker)
            self._refresh(worker, now)

    def _retire(self, worker: Worker, now: float) -> None:
        """Makes it an address again of which nothing is known."""
        self._orphan(worker)
        self._leave(worker, now)
        worker.identity, worker.models, worker.adapters = None, frozenset(), frozenset()
        self._name_models()

    def _seat(self, worker: Worker, identity: Identity, now: float) -> None:
        self._orphan(worker)
        self._leave(worker, now)
        group = self.groups.get(identity.kind)
        if group is None:
            group = self.groups[identity.kind] = Group(
                *identity.kind, self.routing.index_blocks, self.routing.link_bytes_per_s
            )
        worker.identity = identity
        worker.rates = starting_rates((w.rates for w in group.workers.values()), group.prefill)
        try:
            group.add(worker)
        except Rejected:
            self._retire(worker, now)  # a worker with an identity is expected to be in a group
            raise
        worker.guess = Approximate(identity.total_blocks) if identity.silent else None
        self._cursors[worker.address] = Cursor(self.counters)
        self._name_models()

    def _leave(self, worker: Worker, now: float) -> None:
        group = self.group_of(worker)
        if group is not None and worker.slot >= 0:
            group.remove(worker)
            group.refresh(now)

    def _name_models(self) -> None:
        self.models = {}
        for worker in self.fleet.workers.values():
            group = self.group_of(worker)
            if group is not None and worker.identity is not None:
                for model in (worker.identity.model, *worker.models):
                    groups = self.models.setdefault(model, [])
                    if group not in groups:
                        groups.append(group)

    def _forget(self, worker: Worker) -> None:
        """It is a new incarnation: nothing that the old one held or ran counts any more."""
        group = self.group_of(worker)
        if group is not None:
            group.index.clear(worker.slot)
        self._cursors[worker.address].restart()  # else the old incarnation could come back and go on
        if worker.identity is not None and not worker.identity.silent:
            worker.guess = None
        elif worker.guess is not None:
            worker.guess.forget()
        self._orphan(worker)

    def _orphan(self, worker: Worker) -> None:
        """What its bookings were about to make there is not to be expected any more."""
        for booking in self.ledger.restarted(worker):
            self.unmark(booking)
        for _, booking in self._fading:
            if booking.worker is worker:
                self.unmark(booking)

    def fade(self, booking: Booking, now: float) -> bool:
        """Its request has been answered: its prefix counts as held for FADE_S more. What one of our own
        workers holds now comes on another stream, and a conversation's next turn can be here before that.
        False, and nothing done, where it is known otherwise what the worker holds."""
        worker = booking.worker
        if worker.guess is not None or worker.identity is None or worker.identity.anonymous:
            return False
        self._fading.append((now + FADE_S, booking))
        return True

    def unmark(self, booking: Booking) -> None:
        """Its prefix no longer counts as about to be held."""
        group = self.group_of(booking.worker)
        if group is not None:
            group.prefixes.remove(booking.worker.slot, booking.marks)
        booking.marks = []

    # ---- what is heard

    def ingest(self, address: str, message: pb.WatchKvResponse, now: float) -> Iterator[WatchAgain | None]:
        """Takes one message, in slices of less than a millisecond each, so that the caller may pause between
        them. A WatchAgain among what it yields says from where to watch the worker again.

        Must be run to its end before the next message of this worker. Raises Corrupt if no Status has told
        yet whose message this is.
        """
        worker = self.fleet.workers.get(address)
        group = self.group_of(worker) if worker else None
        if worker is None or group is None:
            raise Corrupt("presence events of an unknown worker", address)
        before = worker.state(now)
        self.fleet.heard(worker, now)
        if self.fleet.incarnated(worker, message.epoch, now):
            self._forget(worker)
        if message.HasField("load"):
            self._loaded(worker, group, message, now)
        if worker.state(now) is before:
            group.settle(worker)
        else:
            group.refresh(now)
        if worker.anonymous or worker.guess is not None:  # what it holds comes by ``told``, or is guessed
            return
        for instruction in self._cursors[address].receive(message):
            yield self.perform(group, worker, instruction)

    def _loaded(self, worker: Worker, group: Group, message: pb.WatchKvResponse, now: float) -> None:
        """It has told its load. Raises Corrupt for nonsense."""
        others = self.ledger.included(worker, message.load.bookings)
        if not message.HasField("snapshot"):  # which names old ones again
            group.traffic.elsewhere(others, now)
        last = worker.report
        self.fleet.reported(worker, _strangers(worker, message.load), now)
        told = worker.report
        if worker.anonymous:
            told.others_s = told.waiting * group.traffic.mean_s
            told.unbegun = message.load.waiting - told.waiting
        evictions = told.evictions_total - last.evictions_total
        late_hits = told.late_hits_total - last.late_hits_total
        group.pressure.observe(evictions, late_hits, group.total_blocks)

    def follow(self, address: str, mirror: Mirror | None) -> None:
        """``mirror`` is what the events of a server that is not ours have told; None: they are no longer
        followed."""
        worker = self.fleet.workers.get(address)
        if worker is not None:
            worker.mirror = mirror

    def told(self, address: str, instruction: Instruction) -> None:
        """One instruction from the KV events of a server that is not ours."""
        worker = self.fleet.workers.get(address)
        group = self.group_of(worker) if worker else None
        if worker is not None and group is not None and worker.guess is None:
            self.perform(group, worker, instruction)

    def perform(self, group: Group, worker: Worker, instruction: Instruction) -> WatchAgain | None:
        """Carries out one instruction on the group's index; a WatchAgain is left to the caller."""
        match instruction:
            case Store(tier, depth, hashes):
                group.index.store(worker.slot, tier, depth, keys_of(hashes))
            case Remove(tier, hashes):
                group.index.remove(worker.slot, tier, keys_of(hashes))
            case Clear():
                group.index.clear(worker.slot)
            case WatchAgain():
                return instruction
        return None

    def answered(self, booking: Booking, cached: int | None, now: float, keyed_on_text: bool = False) -> None:
        """A server that is not ours has answered in full. It had ``cached`` tokens; None: it does not say.

        If its answers disagree with its events too often, its events are no longer believed and what it holds
        is guessed. Of a prompt whose token ids were not known (``keyed_on_text``), as with images in it,
        events tell nothing that could be right or wrong.
        """
        worker = booking.worker
        group = self.group_of(worker)
        if group is None:
            return
        if cached is not None:
            worker.agreement.told(now, worker.hits, cached, booking.prompt_tokens)
        if worker.guess is not None or cached is None:
            self.computed(booking, cached, keyed_on_text)
        elif keyed_on_text:
            return
        elif worker.agreement.lost(booking.expected, cached, group.block_size):
            self.counters.kv_distrusted += 1
            group.index.clear(worker.slot)
            assert worker.identity is not None  # it is in a group
            worker.guess = Approximate(worker.identity.total_blocks)
        else:
            self._heal(booking, cached // group.block_size, -(-booking.expected // group.block_size))

    def _heal(self, booking: Booking, found: int, expected: int) -> None:
        """Takes out of the index what its answer did not find, whatever its events have told: of ``expected``
        blocks it ``found`` fewer. What was taken out wrongly before comes back with one that finds it."""
        mirror = booking.worker.mirror
        if mirror is None:
            return
        heard: Iterable[Instruction] = ()
        if expected - found > SLACK_BLOCKS:
            lost = _packed(booking.mirrored[found:expected])
            heard = mirror.not_found(lost, booking.since, nothing=not found)
        elif mirror.doubts:
            heard = mirror.found(_packed(booking.mirrored[:found]), booking.since)
        for instruction in heard:
            self.told(booking.worker.address, instruction)

    def computed(self, booking: Booking, cached: int | None, keyed_on_text: bool = False) -> None:
        """A silent worker has computed a prompt, of which it had ``cached`` tokens; None: it does not say. So
        it is taken to hold all of it now."""
        worker = booking.worker
        group, guess = self.group_of(worker), worker.guess
        if group is None or guess is None or not booking.keys:
            return
        if cached is not None:
            guess.delivered(booking.keys, cached // group.block_size, booking.since, keyed_on_text)
        packed = array("Q", booking.keys).tobytes()
        gone = guess.used(booking.keys, packed)
        group.index.store(worker.slot, pb.DEVICE, 0, packed)
        group.index.remove(worker.slot, pb.DEVICE, gone)

    def tick(self, now: float) -> None:
        """Time has passed: silence becomes visible, ejections and slow starts end."""
        self.fleet.tick(now)
        while self._fading and self._fading[0][0] <= now:
            self.unmark(self._fading.popleft()[1])
        for group in self.groups.values():
            group.refresh(now)

    def sweep(self, budget: int) -> bool:
        """Clears up to ``budget`` slots of each index of what departed workers left; True when all are."""
        clean = [kind for kind, group in self.groups.items() if group.index.sweep(budget)]
        done = len(clean) == len(self.groups)
        for kind in clean:
            if not self.groups[kind].workers:
                del self.groups[kind]  # nobody is left who could serve it
        return done

    def measured(self, worker: Worker) -> None:
        """One worker's rates have been learned better."""
        group = self.group_of(worker)
        if group is not None:
            group.lend_rates()

    def changed(self, worker: Worker) -> None:
        """One worker's load has changed."""
        group = self.group_of(worker)
        if group is not None:
            group.settle(worker)

    def _refresh(self, worker: Worker, now: float) -> None:
        group = self.group_of(worker)
        if group is not None:
            group.refresh(now)

    def failed(self, worker: Worker, now: float) -> None:
        """It has dropped a request."""
        self.fleet.dropped(worker, now)
        if worker.state(now) is State.EJECTED:
            self._refresh(worker, now)


def _packed(keys: Sequence[int]) -> list[bytes]:
    return [key.to_bytes(KEY_BYTES, sys.byteorder) for key in keys]


def _strangers(worker: Worker, load: pb.WorkerLoad) -> pb.WorkerLoad:
    """What others have sent to a server that is not ours. Its load counts all requests and names none, and
    our own bookings count until they end: so these are subtracted."""
    if not worker.anonymous:
        return load
    booked = worker.booked
    others = max(load.running + load.waiting - booked.slots, 0)
    waiting = min(max(load.waiting - booked.coming.prompts, 0), others)
    return pb.WorkerLoad(
        running=others - waiting, waiting=waiting, free_blocks=load.free_blocks, draining=load.draining
    )


def _identity(status: pb.StatusResponse, address: str) -> Identity:
    good = (
        0 < len(status.worker) <= MAX_NAME_CHARS
        and 0 < len(status.model) <= MAX_NAME_CHARS
        and len(status.model_fingerprint) <= MAX_FINGERPRINT_BYTES
        and 0 < status.block_size <= MAX_BLOCK_SIZE
        and status.epoch
        and 0.0 <= status.silence_s <= MOST_SILENCE_S
        and len(status.models) <= MAX_MODELS
        and all(0 < len(model) <= MAX_NAME_CHARS for model in status.models)
    )
    if not good:
        raise Corrupt("a status without a usable name, model, fingerprint, block size and epoch", address)
    return Identity(
        name=status.worker,
        model=status.model,
        fingerprint=status.model_fingerprint,
        engine=status.engine,
        block_size=status.block_size,
        total_blocks=status.total_blocks,
        max_context=status.max_context,
        max_running=status.max_running,
        vocab_size=status.vocab_size,
        silent=status.silent,
        token_bytes=status.block_bytes / status.block_size,
        gives_blocks=status.gives_blocks,
        anonymous=status.anonymous_load,
        silence_s=status.silence_s or STUCK_AFTER_S,
    )
