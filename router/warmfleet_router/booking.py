"""The books: load that placements put on workers until their requests end.

The life of a booking, which may skip steps but never goes back:

    book      counts as a sequence to decode and, while ``coming``, as a prompt to compute
    included  the worker's report includes it, so it is no longer ``counted``; its prompt still tells how
              long the prompts in the worker's queue are (``Booked.ahead``)
    started   its first token has been seen: its prompt is computed, and the worker's reports speak for it
    end       by Finish, once; or it expires, because its gateway fell silent or does not name it any more

Servers that are not ours name no bookings in their reports. There it counts as a sequence until its end.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from warmfleet_proto.errors import Rejected
from warmfleet_proto.limits import BOOKING_HEARTBEAT_S, BOOKING_TTL_S, MAX_BOOKINGS

from warmfleet_router.fleet.worker import Worker
from warmfleet_router.prices.wanted import Prefix

ID_BITS = 48  # of a booking's id, after its router's tag


class Booking(msgspec.Struct, eq=False):
    """One placement whose request has not ended, and what is needed to learn from how it goes."""

    id: int
    gateway: str
    worker: Worker
    epoch: int  # the worker's, when it was made
    made_at: float
    slots: int  # sequences to decode
    prompt_tokens: int
    expected: int  # of those, tokens that are expected to need no computing
    predicted_ttft_s: float
    alone: bool  # the worker had nothing else to do
    source: str = ""  # the peer that blocks are pulled from
    pulling: int = 0  # tokens of these blocks; 0 once the first token has been seen
    pull_bytes: float = 0.0  # of these blocks
    prefix: Prefix | None = None  # that it shares with earlier requests, where copies may be ordered
    marks: list[int] = []  # its prefix, as the group's BookedPrefixes has it
    keys: Sequence[int] = ()  # of the prompt, if its worker's presence is guessed ...
    mirrored: Sequence[int] = ()  # ... or if KV events of a server that is not ours tell it
    since: int = 0  # the clock of that guess or mirror when it was placed
    counted: bool = True  # as load that the worker's report does not include yet
    coming: bool = True  # counted as a prompt to compute, too
    started: bool = False  # its first token has been seen
    delivered: int | None = None  # tokens that the worker had cached, once it has told
    ttft_s: float | None = None  # once known
    ending: str = ""  # while alive; then ok, ignore, dropped, expired

    @property
    def prefill(self) -> tuple[int, int]:
        """Tokens that are expected to need computing, and the cached ones before them: as Prefills count."""
        return self.prompt_tokens - self.expected, self.expected


@dataclass(slots=True)
class _Gateway:
    seen_at: float
    bookings: dict[int, Booking] = field(default_factory=dict)


class Ledger:
    """All live bookings of one router, MAX_BOOKINGS at most. It keeps up each worker's ``booked``.

    Their ids begin with ``tag``, which tells them from those of other routers over the same workers.
    """

    def __init__(self, tag: int = 0) -> None:
        self._tag = tag
        self._bookings: dict[int, Booking] = {}
        self._gateways: dict[str, _Gateway] = {}

    def __contains__(self, booking: int) -> bool:
        return booking in self._bookings

    def check_room(self) -> None:
        """Raises Rejected when the books are full."""
        if len(self._bookings) >= MAX_BOOKINGS:
            raise Rejected(f"{MAX_BOOKINGS} requests are in flight already")

    def book(self, booking: Booking) -> None:
        """Adds a booking; ``check_room`` has found room for it."""
        assert booking.id not in self._bookings
        self._bookings[booking.id] = booking
        gateway = self._gateways.get(booking.gateway)
        if gateway is None:
            gateway = self._gateways[booking.gateway] = _Gateway(booking.made_at)
        gateway.seen_at = booking.made_at
        gateway.bookings[booking.id] = booking
        booked = booking.worker.booked
        booked.alive += 1
        booked.pulling += booking.pulling
        _comes(booking)
        _count(booking, 1)

    def included(self, worker: Worker, ids: Iterable[int]) -> int:
        """The worker's report includes the bookings ``ids`` now. Returns how many of them other routers made.

        An id of this router that is booked on another worker is passed over.
        """
        others = 0
        for id_ in ids:
            booking = self._bookings.get(id_)
            if booking is None:
                others += id_ >> ID_BITS != self._tag
            elif booking.worker is worker and booking.counted:
                _discount(booking)
                worker.booked.ahead.join(id_, *booking.prefill)
        return others

    def started(self, id_: int, now: float) -> Booking | None:
        """Its first token has been seen: its prompt is computed. None if it has ended, or started before."""
        booking = self._bookings.get(id_)
        if booking is None:
            return None
        self._gateways[booking.gateway].seen_at = now
        if booking.started:
            return None
        booking.started = True
        booking.worker.booked.ahead.leave(booking.id)
        _pulled(booking)
        identity = booking.worker.identity
        if identity is not None and identity.anonymous:  # no report will ever name it
            _prefilled(booking, now)
        else:
            _discount(booking)
        return booking

    def end(self, id_: int, now: float) -> Booking | None:
        """Its request has ended. Exactly one caller gets the booking; None if it ended or expired before."""
        booking = self._bookings.get(id_)
        if booking is None:
            return None
        self._gateways[booking.gateway].seen_at = now
        _leave(booking)
        self._remove(booking, now)
        return booking

    def restarted(self, worker: Worker) -> list[Booking]:
        """The worker is a new incarnation, which knows nothing of the bookings before. These are no load any
        more, though each still has to end."""
        orphans = [booking for booking in self._bookings.values() if booking.worker is worker]
        for booking in orphans:
            _discount(booking)
            worker.booked.ahead.leave(booking.id)
        return orphans

    def heartbeat(self, gateway: str, now: float) -> int:
        """Keeps a gateway's bookings alive; their number."""
        known = self._gateways.get(gateway)
        if known is None:
            return 0
        known.seen_at = now
        return len(known.bookings)

    def forgotten(self, gateway: str, live: Collection[int], now: float) -> list[Booking]:
        """Ends what the gateway no longer holds: its Finish, or the answer to its Route, was lost.

        Bookings younger than two heartbeats may be on their way to it.
        """
        known = self._gateways.get(gateway)
        if known is None:
            return []
        named, youngest = set(live), now - 2 * BOOKING_HEARTBEAT_S
        lost = [b for b in known.bookings.values() if b.id not in named and b.made_at < youngest]
        for booking in lost:
            self._remove(booking, now)
        return lost

    def expire(self, now: float) -> list[Booking]:
        """Ends what silent gateways have left behind."""
        silent = [name for name, g in self._gateways.items() if now - g.seen_at > BOOKING_TTL_S]
        ended: list[Booking] = []
        for name in silent:
            bookings = list(self._gateways[name].bookings.values())
            for booking in bookings:
                self._remove(booking, now)
            ended += bookings
            self._gateways.pop(name, None)
        return ended

    def _remove(self, booking: Booking, now: float) -> None:
        del self._bookings[booking.id]
        gateway = self._gateways[booking.gateway]
        del gateway.bookings[booking.id]
        if not gateway.bookings:
            del self._gateways[booking.gateway]
        _discount(booking, now)
        _pulled(booking)
        booking.worker.booked.ahead.leave(booking.id)
        booking.worker.booked.alive -= 1


def _pulled(booking: Booking) -> None:
    """Its pull is over: what has come is used, or nobody waits for it any more."""
    booking.worker.booked.pulling -= booking.pulling
    booking.pulling = 0


def _comes(booking: Booking) -> None:
    """Its prompt joins those to compute. At a server that is not ours these are computed one after another;
    if all before it should be done by now, the server begins with this one now, not earlier."""
    worker, booked = booking.worker, booking.worker.booked
    if worker.identity is not None and worker.identity.anonymous:
        booked.began = max(booked.began, booking.made_at - worker.rates.all_s(booked.coming))
        booked.line[booking.id] = None
    booked.coming.count(*booking.prefill, 1)


def _prefilled(booking: Booking, now: float = 0.0) -> None:
    """Its prompt is no longer to be computed, though it may go on counting as a sequence. If it was the
    oldest in a server's line, the server begins with the next one."""
    if not booking.coming:
        return
    booking.coming = False
    booked = booking.worker.booked
    booked.coming.count(*booking.prefill, -1)
    if booked.line and next(iter(booked.line)) == booking.id:
        booked.began = max(booked.began, now)
    booked.line.pop(booking.id, None)


def _leave(booking: Booking) -> None:
    """Notes that it has ended, though the worker's report still includes it. A conversation's next turn may
    come before the next report, and its worker must not look busy with the turn before."""
    worker = booking.worker
    if booking.started and not booking.counted and booking.epoch == worker.epoch:
        worker.booked.left += booking.slots
        worker.booked.left_tokens += booking.prompt_tokens


def _discount(booking: Booking, now: float = 0.0) -> None:
    _prefilled(booking, now)
    if booking.counted:
        booking.counted = False
        _count(booking, -1)


def _count(booking: Booking, sign: int) -> None:
    booked = booking.worker.booked
    booked.slots += sign * booking.slots
    booked.context_tokens += sign * booking.prompt_tokens
