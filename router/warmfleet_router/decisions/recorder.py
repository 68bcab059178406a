"""A RouterCore that writes down all that it is told and what it decides. Pure, as the core is."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import worker_pb2 as wpb
from warmfleet_proto.transfer_pb2 import Pulled

from warmfleet_router.booking import Booking
from warmfleet_router.core import RouterCore
from warmfleet_router.decisions.chains import kind_of
from warmfleet_router.decisions.journal import Journal, Write
from warmfleet_router.decisions.lines import (
    VERSION,
    Added,
    Asked,
    Beat,
    Begin,
    Broken,
    Brought,
    Chain,
    Change,
    Ended,
    Explained,
    First,
    Heard,
    Joined,
    More,
    Placed,
    Removed,
    Swept,
)
from warmfleet_router.decisions.messages import plain
from warmfleet_router.fleet.group import Group
from warmfleet_router.fleet.roster import Roster
from warmfleet_router.fleet.worker import Worker
from warmfleet_router.index.cursor import Clear, Instruction, Remove, Store, WatchAgain, keys_of
from warmfleet_router.placement import Decision
from warmfleet_router.request import Request, checked
from warmfleet_router.routing import Routing


class Record(NamedTuple):
    """Where the log goes. ``run`` names this router's life; ``file_bytes`` begin another file."""

    write: Write
    run: str
    file_bytes: int


class RecordingCore(RouterCore):
    """Told what comes in through the methods below; whatever else it does follows from that."""

    def __init__(self, routing: Routing, seed: int, record: Record) -> None:
        super().__init__(routing, seed)
        begin = Begin(VERSION, record.run, 0, self.policy.name, msgspec.to_builtins(routing), seed)
        self._journal = Journal(begin, self.counters, record.write, record.file_bytes)
        self.roster = RecordingRoster(self.roster, self._journal)

    def explain(self, request: pb.RouteRequest, now: float) -> pb.Explanation:
        answer = super().explain(request, now)
        self._journal.settle()
        self._journal.note(Explained(now, self._asked(checked(request, self.hasher), None)))
        return answer

    def progress(self, request: pb.ProgressRequest, now: float) -> pb.ProgressResponse:
        self._journal.note(First(now, plain(request)))
        return super().progress(request, now)

    def finish(self, request: pb.FinishRequest, now: float) -> pb.FinishResponse:
        answer = super().finish(request, now)
        self._journal.note(Ended(now, plain(request)))
        return answer

    def heartbeat(self, request: pb.HeartbeatRequest, now: float) -> pb.HeartbeatResponse:
        expired = self.counters.expired
        answer = super().heartbeat(request, now)
        ended = self.counters.expired > expired
        self._journal.note(Beat(now, request.gateway_id, list(request.live.bookings) if ended else None))
        return answer

    def tick(self, now: float) -> None:
        self._journal.tick(now)
        super().tick(now)

    def brought(self, order_id: int, pulled: Pulled | None, now: float) -> None:
        self._journal.note(Brought(now, order_id, None if pulled is None else plain(pulled)))
        super().brought(order_id, pulled, now)

    def _book(self, wanted: Request, decision: Decision, now: float) -> Booking:
        booking = super()._book(wanted, decision, now)
        pull = decision.choice.candidate.pull
        self._journal.settle()
        self._journal.note(
            Placed(
                now,
                self._asked(wanted, decision),
                booking.id,
                booking.worker.address,
                booking.worker.name,
                decision.choice.reason,
                {name: seconds for name, seconds in decision.terms if seconds},
                decision.available,
                decision.choice.candidate.overlap,
                decision.ttft_s,
                (pull.source.name, pull.from_tokens, pull.tokens) if pull else None,
            )
        )
        return booking

    def _asked(self, wanted: Request, decision: Decision | None) -> Asked:
        groups = self.roster.models.get(wanted.model, ())
        return Asked(
            prompt_tokens=wanted.prompt_tokens,
            model=wanted.model,
            chains=[self._chain(wanted, group, decision) for group in groups],
            id=wanted.request_id,
            gateway=wanted.gateway,
            tenant=wanted.tenant,
            max_tokens=wanted.max_tokens,
            slots=wanted.slots,
            exclude=sorted(wanted.exclude),
            bypass_cache=wanted.bypass_cache,
        )

    def _chain(self, wanted: Request, group: Group, decision: Decision | None) -> Chain:
        kind = kind_of(group.fingerprint, group.block_size)
        if decision is not None and decision.group is group:
            keys = memoryview(decision.ask.keys)  # type: ignore[arg-type]
            return self._journal.chains.chain(kind, keys, keys.tobytes())
        packed = wanted.keys_for(group.fingerprint, group.block_size)
        return self._journal.chains.chain(kind, memoryview(packed).cast("Q"), packed)


class RecordingRoster(Roster):
    def __init__(self, roster: Roster, journal: Journal) -> None:
        """Takes the place of ``roster``, which no worker has joined yet."""
        super().__init__(roster.ledger, roster.counters, roster.routing)
        self._journal = journal

    def add(self, address: str) -> None:
        self._journal.note(Added(address))
        super().add(address)

    def remove(self, address: str, now: float) -> None:
        self._journal.note(Removed(now, address))
        super().remove(address, now)

    def joined(self, address: str, status: wpb.StatusResponse, now: float) -> None:
        self._journal.note(Joined(now, address, plain(status)))
        super().joined(address, status, now)

    def broken(self, address: str, now: float) -> None:
        self._journal.note(Broken(now, address))
        super().broken(address, now)

    def ingest(self, address: str, message: wpb.WatchKvResponse, now: float) -> Iterator[WatchAgain | None]:
        load = plain(message.load) if message.HasField("load") else None
        self._journal.open(Heard(now, address, message.epoch, load))
        try:
            yield from super().ingest(address, message, now)
        finally:
            self._journal.close(address)

    def told(self, address: str, instruction: Instruction) -> None:
        worker = self.fleet.workers.get(address)
        change = _change(instruction)
        if worker is not None and worker.guess is None and change is not None:
            self._journal.note(More(address, [change]))
        super().told(address, instruction)

    def sweep(self, budget: int) -> bool:
        if any(not group.index.clean or not group.workers for group in self.groups.values()):
            self._journal.note(Swept(budget))
        return super().sweep(budget)

    def perform(self, group: Group, worker: Worker, instruction: Instruction) -> WatchAgain | None:
        line = self._journal.opened(worker.address)
        if line is not None and (change := _change(instruction)):
            line.changes.append(change)
        return super().perform(group, worker, instruction)


def _change(instruction: Instruction) -> Change | None:
    match instruction:
        case Store(tier, depth, hashes):
            return Change("+", tier, depth, keys_of(hashes))
        case Remove(tier, hashes):
            return Change("-", tier, 0, keys_of(hashes))
        case Clear():
            return Change("c")
    return None
