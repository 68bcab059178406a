"""A decision log fed to a router core: the same decisions come out. Pure."""

from typing import NamedTuple

import msgspec
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import worker_pb2 as wpb
from warmfleet_proto.errors import WarmfleetError
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.core import RouterCore
from warmfleet_router.decisions import lines
from warmfleet_router.decisions.chains import Reader, kind_of
from warmfleet_router.decisions.lines import AnyLine, Asked, Change, Placed
from warmfleet_router.decisions.messages import message_of
from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.roster import Roster
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.index.cursor import Instruction, WatchAgain
from warmfleet_router.request import Request
from warmfleet_router.routing import Routing


class Judged(NamedTuple):
    """One logged placement; ``differs`` says how the replayed one does, empty where it does not."""

    line: Placed
    keys: dict[str, bytes]  # packed, by kind of workers
    differs: str | None  # None: the log does not tell enough to replay it


class LoggedRequest(Request, frozen=True):
    """Its keys are known for every kind of workers that could have served it."""

    chains: dict[str, bytes] = msgspec.field(default_factory=dict)

    def keys_for(self, fingerprint: bytes, block_size: int) -> bytes:
        return self.chains.get(kind_of(fingerprint, block_size), b"")


class Player:
    """``take`` every line in order."""

    def __init__(self) -> None:
        self.begin: lines.Begin | None = None
        self._core: RouterCore | None = None  # None: what came before is not known
        self._chains = Reader()

    def take(self, line: AnyLine) -> Judged | None:
        """What became of a placement, for a line that is one. Raises ValueError for a log that contradicts
        itself."""
        match line:
            case lines.Begin():
                self._begin(line)
            case lines.Lost():
                self._core = None
                self._chains = Reader()
            case Placed():
                return self._judge(line)
            case lines.Explained():
                wanted = self._wanted(line.asked)
                if self._core is not None:
                    self._core.decide(wanted, line.t)
            case _:
                if self._core is not None:
                    _feed(self._core, line)
        return None

    def _begin(self, line: lines.Begin) -> None:
        self._chains = Reader()
        follows = self.begin is not None and (line.run, line.part) == (self.begin.run, self.begin.part + 1)
        self.begin = line
        if line.part == 0:
            routing = {"replicate": False} | line.routing  # older than that setting: nothing was copied ahead
            self._core = PlayedCore(msgspec.convert(routing, Routing), line.seed)
        elif not follows:
            self._core = None

    def _judge(self, line: Placed) -> Judged:
        wanted = self._wanted(line.asked)
        if self._core is None:
            return Judged(line, wanted.chains, None)
        try:
            placement = self._core.route(wanted, line.t)
        except WarmfleetError as error:
            return Judged(line, wanted.chains, str(error))
        return Judged(line, wanted.chains, _difference(line, placement))

    def _wanted(self, asked: Asked) -> LoggedRequest:
        return LoggedRequest(
            asked.id,
            asked.gateway,
            asked.tenant,
            asked.model,
            b"",
            b"",
            b"",
            asked.prompt_tokens,
            asked.max_tokens,
            asked.slots,
            frozenset(asked.exclude),
            asked.bypass_cache,
            chains={chain.kind: self._chains.keys(chain) for chain in asked.chains},
        )


class PlayedCore(RouterCore):
    def __init__(self, routing: Routing, seed: int) -> None:
        super().__init__(routing, seed)
        self.roster = PlayedRoster(self.roster.ledger, self.roster.counters, self.roster.routing)


class PlayedRoster(Roster):
    """Presence comes from the log, as the cursors of the recorded router gave it to its index."""

    def perform(self, group: Group, worker: Worker, instruction: Instruction) -> WatchAgain | None:
        return None

    def change(self, address: str, change: Change) -> None:
        worker = self.fleet.workers[address]
        group = self.group_of(worker)
        if group is None:
            return
        match change.op:
            case "+":
                group.index.store(worker.slot, change.tier, change.depth, change.keys)
            case "-":
                group.index.remove(worker.slot, change.tier, change.keys)
            case _:
                group.index.clear(worker.slot)


def _feed(core: RouterCore, line: AnyLine) -> None:
    """Errors are those that the recorded router met too."""
    try:
        _tell(core, line)
    except WarmfleetError:
        return


def _tell(core: RouterCore, line: AnyLine) -> None:
    roster = core.roster
    assert isinstance(roster, PlayedRoster)
    match line:
        case lines.Added(worker):
            roster.add(worker)
        case lines.Removed(t, worker):
            roster.remove(worker, t)
        case lines.Joined(t, worker, status):
            roster.joined(worker, message_of(wpb.StatusResponse, status), t)
        case lines.Broken(t, worker):
            roster.broken(worker, t)
        case lines.Heard():
            _hear(roster, line)
        case lines.More(worker, changes):
            _change(roster, worker, changes)
        case lines.First(t, progress):
            core.progress(message_of(pb.ProgressRequest, progress), t)
        case lines.Ended(t, finish):
            core.finish(message_of(pb.FinishRequest, finish), t)
        case lines.Beat(t, gateway, live):
            bookings = None if live is None else pb.LiveBookings(bookings=live)
            core.heartbeat(pb.HeartbeatRequest(gateway_id=gateway, live=bookings), t)
        case lines.Ticked(ticks):
            for t in ticks:
                core.tick(t)
            core.replication.take_orders()  # what came of them is in the log
        case lines.Brought(t, order, pulled):
            core.brought(order, None if pulled is None else message_of(Pulled, pulled), t)
        case lines.Swept(budget):
            roster.sweep(budget)


def _hear(roster: PlayedRoster, line: lines.Heard) -> None:
    load = None if line.load is None else message_of(wpb.WorkerLoad, line.load)
    message = wpb.WatchKvResponse(epoch=line.epoch, load=load)
    for _ in roster.ingest(line.worker, message, line.t):
        pass
    _change(roster, line.worker, line.changes)


def _change(roster: PlayedRoster, worker: str, changes: list[Change]) -> None:
    for change in changes:
        roster.change(worker, change)


def _difference(line: Placed, placement: pb.Placement) -> str:
    """Exact: the same inputs give the same bits."""
    terms = {term.name: term.seconds for term in placement.terms}
    pull = placement.pull
    pairs = (
        ("worker", line.worker, placement.address),
        ("terms", line.terms, terms),
        ("available", line.available, placement.available_tokens),
        ("expected", line.expected, placement.expected_tokens),
        ("booking", line.booking, placement.booking),
        ("reason", line.reason, placement.reason),
        ("pull", line.pull or ("", 0, 0), (pull.source, pull.from_tokens, pull.tokens)),
    )
    return "; ".join(f"{name} {now}, logged {logged}" for name, logged, now in pairs if logged != now)
