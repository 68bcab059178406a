"""A fleet made of messages: what workers would tell a core, without workers."""

from dataclasses import dataclass, field

from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.hashing import chain, digest_bytes, keys, presence, root_hash
from warmfleet_router.core import RouterCore
from warmfleet_router.routing import Routing

FINGERPRINT = b"f" * 32
BLOCK = 16
BLOCKS = 1000  # of each worker


def tokens(*runs: tuple[int, int]) -> bytes:
    """Packed ids: each run is (first id, how many)."""
    ids = [first + i for first, count in runs for i in range(count)]
    return b"".join(i.to_bytes(4, "little") for i in ids)


def hashes_of(token_ids: bytes, salt: bytes = b"") -> list[bytes]:
    return chain(root_hash(FINGERPRINT, BLOCK, salt=salt), token_ids, BLOCK)


def keys_of(token_ids: bytes) -> bytes:
    return keys(hashes_of(token_ids))


@dataclass
class FakeWorker:
    """Speaks for one worker: snapshot, batches, load."""

    core: RouterCore
    name: str
    epoch: int = 1
    seq: int = 0
    digest: int = 0
    present: set[tuple[bytes, int]] = field(default_factory=set)  # with its tier
    status: dict[str, object] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.name}:1"

    def join(self, now: float) -> None:
        self.core.roster.add(self.address)
        self.core.roster.joined(self.address, self._status(), now)
        part = pb.KvSnapshot(seq=self.seq, digest=digest_bytes(self.digest), first=True, last=True)
        self.say(pb.WatchKvResponse(epoch=self.epoch, snapshot=part), now)

    def restart(self, now: float) -> None:
        self.epoch += 1
        self.seq, self.digest, self.present = 0, 0, set()
        self.core.roster.broken(self.address, now)
        self.join(now)

    def say(self, message: pb.WatchKvResponse, now: float) -> list[object]:
        return [ask for ask in self.core.roster.ingest(self.address, message, now) if ask]

    def store(
        self, token_ids: bytes, now: float, salt: bytes = b"", tier: pb.Tier.ValueType = pb.DEVICE
    ) -> None:
        """All full blocks of a prompt are present in the tier from now on."""
        new = [h for h in hashes_of(token_ids, salt) if (h, tier) not in self.present]
        self.present |= {(h, tier) for h in new}
        self.digest += sum(presence(h, tier) for h in new)
        self._commit(pb.KvEvent(stored=pb.Stored(tier=tier, depth=0, hashes=b"".join(new))), now)

    def remove(self, hashes: list[bytes], now: float, tier: pb.Tier.ValueType = pb.DEVICE) -> None:
        """Blocks that were present in the tier."""
        self.present -= {(h, tier) for h in hashes}
        self.digest -= sum(presence(h, tier) for h in hashes)
        self._commit(pb.KvEvent(removed=pb.Removed(tier=tier, hashes=b"".join(hashes))), now)

    def _commit(self, event: pb.KvEvent, now: float) -> None:
        self.seq += 1
        batch = pb.KvBatch(seq=self.seq, digest=digest_bytes(self.digest), events=[event])
        assert self.say(pb.WatchKvResponse(epoch=self.epoch, batch=batch), now) == []

    def report(self, now: float, **load: object) -> None:
        """With all of its memory free, unless ``load`` says otherwise."""
        told = pb.WorkerLoad(**({"free_blocks": BLOCKS} | load))  # type: ignore[arg-type]
        self.say(pb.WatchKvResponse(epoch=self.epoch, load=told), now)

    def _status(self) -> pb.StatusResponse:
        fields: dict[str, object] = {
            "worker": self.name,
            "model": "m",
            "model_fingerprint": FINGERPRINT,
            "block_size": BLOCK,
            "total_blocks": BLOCKS,
            "max_context": 100_000,
            "max_running": 64,
            "vocab_size": 1000,
            "engine": "sim",
        }
        return pb.StatusResponse(epoch=self.epoch, **(fields | self.status))  # type: ignore[arg-type]


def fleet_of(
    count: int, now: float = 0.0, *, warm: bool = True, seed: int = 1, **routing: object
) -> tuple[RouterCore, list[FakeWorker]]:
    """``count`` healthy workers; ``warm`` ones joined long enough ago for their slow start to be over."""
    core = RouterCore(Routing(**routing), seed)  # type: ignore[arg-type]
    workers = [FakeWorker(core, f"w{i}") for i in range(count)]
    for worker in workers:
        worker.join(now - 60.0 if warm else now)
        worker.report(now)
    core.tick(now)
    return core, workers


def ask(token_ids: bytes | None = None, **fields: object) -> rpb.RouteRequest:
    given: dict[str, object] = {"model": "m", "gateway_id": "g", "max_tokens": 64}
    if token_ids is not None:
        given["token_ids"] = token_ids
    return rpb.RouteRequest(**(given | fields))  # type: ignore[arg-type]
