"""Sim workers that move blocks, and the pulls that a router would order."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from warmfleet_proto import transfer_pb2 as pb
from warmfleet_proto.grant import source_key
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_router.grant import Granter
from warmfleet_worker.worker import Worker

from tests.process.fleet import sim_worker
from tests.process.gateway import Stream, packed, stream, stub_of

FLEET_KEY = bytes(range(32))
TTL_S = 100.0
ONE_STEP = 1 << 30  # tokens of a step so long that no transfer looks slow beside it, on any machine


class End(NamedTuple):
    worker: Worker
    gateway: Stream


@asynccontextmanager
async def pair(
    tmp_path: Path, source: dict[str, Any] | None = None, **config: Any
) -> AsyncIterator[tuple[End, End]]:
    """Workers a and b, each with a gateway's stream; both give blocks. ``source``: what only a has.

    Their steps are so long that nobody computes the front of what is on its way, unless ``config`` says so.
    """
    config.setdefault("chunk_tokens", ONE_STEP)
    async with AsyncExitStack() as stack:
        ends = []
        for name in "ab":
            own = (source or {}) if name == "a" else {}
            worker = await stack.enter_async_context(giving(tmp_path, name, **config, **own))
            stub = await stack.enter_async_context(stub_of(worker))
            ends.append(End(worker, await stack.enter_async_context(stream(stub))))
        yield ends[0], ends[1]


@asynccontextmanager
async def giving(tmp_path: Path, name: str, **config: Any) -> AsyncIterator[Worker]:
    """A worker that peers may pull from, with its own key in a file."""
    path = tmp_path / f"{name}.key"
    path.write_text(source_key(FLEET_KEY, name).hex())
    transfer = {"key_file": str(path), **config.pop("transfer", {})}
    async with sim_worker(name=name, transfer=transfer, **config) as worker:
        yield worker


def root_of(worker: Worker, salt: bytes = b"") -> bytes:
    engine = worker.runner.engine
    return root_hash(engine.fingerprint, engine.block_size, salt=salt)


def hashes_of(worker: Worker, prompt: Sequence[int], salt: bytes = b"") -> list[bytes]:
    return chain(root_of(worker, salt), packed(prompt), worker.runner.engine.block_size)


def grant_of(
    source: Worker, hashes: Sequence[bytes], *, first: int = 0, salt: bytes = b"", **changes: Any
) -> pb.Grant:
    claims = {
        "source": source.config.name,
        "target": "b",
        "epoch": source.presence.epoch,
        "root": root_of(source, salt),
        "first": first,
        "keys": keys(list(hashes)),
        "expires_s": source.runner.now() + TTL_S,
        **changes,
    }
    return Granter(FLEET_KEY).grant(pb.Claims(**claims))


def pull_of(
    source: Worker, prompt: Sequence[int], *, first: int = 0, within_s: float = 60.0, **changes: Any
) -> pb.Pull:
    """Of all full blocks of ``prompt`` from ``first`` on."""
    size = source.runner.engine.block_size
    hashes = hashes_of(source, prompt, changes.get("salt", b""))[first:]
    return pb.Pull(
        source=source.config.name,
        address=source.grpc_address,
        from_tokens=first * size,
        tokens=len(hashes) * size,
        within_s=within_s,
        grant=grant_of(source, hashes, first=first, **changes),
    )
