"""What a modelled worker tells the router: messages, digests, replays and snapshots as a real one's."""

from collections import deque
from collections.abc import Iterable
from itertools import groupby

from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_proto.limits import EVENT_RING_BATCHES, HASH_BYTES, KEY_BYTES

from warmfleet_router.replay.cache import Cache, Node
from warmfleet_router.replay.host import HostTier
from warmfleet_router.replay.worker import Worker

_PAD = bytes(HASH_BYTES - KEY_BYTES)


def block_hash(key: int) -> bytes:
    """A BlockHash whose first half, the index's key, is ``key``."""
    return key.to_bytes(KEY_BYTES, "little") + _PAD


class Announcer:
    def __init__(self, worker: Worker, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self.told_at = 0.0
        self.leaves_at: float | None = None  # it drains until then
        self._worker = worker
        self._digest = 0
        self._tiers: dict[pb.Tier, Cache | HostTier] = {pb.DEVICE: worker.cache}
        if worker.host:
            self._tiers[pb.HOST] = worker.host
        self._present: dict[pb.Tier, dict[int, Node]] = {tier: {} for tier in self._tiers}
        self._ring: deque[pb.KvBatch] = deque(maxlen=EVENT_RING_BATCHES)
        self._bookings: list[int] = []
        self._live: dict[int, None] = {}  # bookings

    def accepted(self, booking: int) -> None:
        self._bookings.append(booking)
        self._live[booking] = None

    def ended(self, booking: int) -> None:
        self._live.pop(booking, None)

    def message(self, now: float) -> pb.WatchKvResponse:
        """Everything since the last message, in one batch."""
        self.told_at = now
        events = [event for tier, blocks in self._tiers.items() for event in self._events(tier, blocks)]
        self.seq += 1
        batch = pb.KvBatch(seq=self.seq, digest=digest_bytes(self._digest), events=events)
        self._ring.append(batch)
        bookings, self._bookings = self._bookings, []
        return pb.WatchKvResponse(epoch=self.epoch, batch=batch, load=self._load(bookings, now))

    def repeat(self, epoch: int, after_seq: int, now: float) -> list[pb.WatchKvResponse]:
        """The answer to a router that watches again: a replay of what it missed, or a snapshot."""
        if epoch == self.epoch and self._ring and self._ring[0].seq <= after_seq + 1:
            missed = [b for b in self._ring if b.seq > after_seq]
            return [pb.WatchKvResponse(epoch=self.epoch, batch=b) for b in missed]
        snapshot = pb.KvSnapshot(
            seq=self.seq,
            digest=digest_bytes(self._digest),
            stored=[run for tier, nodes in self._present.items() for run in _runs(tier, nodes.values())],
            first=True,
            last=True,
        )
        return [
            pb.WatchKvResponse(epoch=self.epoch, snapshot=snapshot, load=self._load(list(self._live), now))
        ]

    def present(self, tier: pb.Tier = pb.DEVICE) -> list[int]:
        """Keys of what has been announced and is there."""
        return list(self._present[tier])

    def _events(self, tier: pb.Tier, blocks: Cache | HostTier) -> list[pb.KvEvent]:
        """What came and went since the last call is not present after it."""
        stored, blocks.stored = blocks.stored, []
        removed, blocks.removed = blocks.removed, []
        present, gone = self._present[tier], []
        for node in removed:
            if present.pop(node.key, None) is not None:
                gone.append(block_hash(node.key))
                self._digest -= presence(gone[-1], tier)
        fresh = [node for node in stored if blocks.holds(node)]
        for node in fresh:
            present[node.key] = node
            self._digest += presence(block_hash(node.key), tier)
        events = [pb.KvEvent(removed=pb.Removed(tier=tier, hashes=b"".join(gone)))] if gone else []
        return events + [pb.KvEvent(stored=run) for run in _runs(tier, fresh)]

    def _load(self, bookings: list[int], now: float) -> pb.WorkerLoad:
        worker = self._worker
        return pb.WorkerLoad(
            running=len(worker.running),
            waiting=len(worker.waiting),
            prefill_tokens=worker.prefill_tokens,
            context_tokens=worker.context_tokens,
            free_blocks=max(worker.cache.free, 0),
            cached_blocks=worker.cache.cached,
            wanted_blocks=worker.wanted_blocks,
            bookings=bookings,
            prompt_tokens_total=worker.prompt_tokens,
            cached_tokens_total=worker.cached_tokens,
            steps_total=worker.steps,
            evictions_total=worker.evictions,
            late_hits_total=worker.late_hits,
            step_seconds_total=worker.step_seconds,
            work=pb.Work(**worker.work._asdict()),
            step_age_s=0.0 if worker.step_began is None else now - worker.step_began,
            draining=self.leaves_at is not None,
            leaves_s=0.0 if self.leaves_at is None else max(self.leaves_at - now, 0.0),
        )


def _runs(tier: pb.Tier, nodes: Iterable[Node]) -> list[pb.Stored]:
    """Nodes that continue one another in one message each."""
    runs = []
    for _, run in groupby(enumerate(nodes), key=lambda pair: pair[1].depth - pair[0]):
        members = [node for _, node in run]
        hashes = b"".join([block_hash(n.key) for n in members])
        runs.append(pb.Stored(tier=tier, depth=members[0].depth, hashes=hashes))
    return runs
