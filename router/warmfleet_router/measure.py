"""What a running worker takes to prefill, and what a peer's blocks take to come: measured, for ``breakeven``.

Prompts are random, so nothing is cached; each length is tried twice and the quicker counts, since whatever
else the worker does can only delay it.
"""

import asyncio
import random
import secrets
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import grpc
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import Tls, connect
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_proto.limits import FRAME_BYTES, GRANT_TTL_S, TOKEN_BYTES
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.transfer_pb2 import Claims, Pull
from warmfleet_proto.worker_pb2_grpc import WorkerStub

from warmfleet_router.grant import Granter
from warmfleet_router.replay.profile import Profile

_SHORTEST, _LONGEST = 256, 32_768  # tokens
_LONG_S = 10.0  # nothing longer is tried after a prompt that took so long
_ANSWER_S = 300.0
_PULL_S = 120.0


class Link(NamedTuple):
    bytes_per_s: float
    latency_s: float


async def measure(address: str, peer: str, fleet_key: bytes | None, tls: Tls | None = None) -> Profile:
    """Measures the worker at ``address``; and its link from ``peer``, if there is one. Raises ConfigError."""
    try:
        async with _bench(address, tls) as target:
            seen = await _prefills(target)
            token_s, pair_s = fitted(seen)
            link = Link(0.0, 0.0)
            if peer and fleet_key:
                async with _bench(peer, tls) as source:
                    link = await _link(source, target, Granter(fleet_key), seen[-1][0])
    except grpc.aio.AioRpcError as error:
        raise ConfigError(f"--measure: {address}: {error.details() or error.code()}") from None
    return Profile(
        name=f"{target.status.worker} at {address}, measured",
        prefill_token=token_s,
        prefill_pair=pair_s,
        kv_bytes_per_token=target.status.block_bytes // target.status.block_size,
        link_bytes_per_s=link.bytes_per_s,
        link_latency=link.latency_s,
    )


def fitted(seen: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds a token and a pair of tokens, by least squares of relative errors."""
    rows = [(n / s, 0.5 * n * n / s) for n, s in seen]
    tt, tp, pp = (sum(a[i] * a[j] for a in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    t, p = sum(a for a, _ in rows), sum(b for _, b in rows)
    spread = tt * pp - tp * tp
    pair_s = max((p * tt - t * tp) / spread, 0.0) if spread > 1e-9 * tt * pp else 0.0
    return max((t - pair_s * tp) / tt, 0.0), pair_s


def link_of(short: tuple[float, float], long: tuple[float, float]) -> Link:
    """Through two pulls, each in bytes and seconds."""
    (few, quick_s), (many, slow_s) = short, long
    rate = (many - few) / (slow_s - quick_s) if many > few and slow_s > quick_s else many / slow_s
    return Link(rate, max(quick_s - few / rate, 0.0))


class _Bench:
    """One worker, asked one prompt after another."""

    def __init__(self, address: str, stub: Any, call: Any, status: pb.StatusResponse) -> None:
        self.address = address
        self.status = status
        self.root = root_hash(status.model_fingerprint, status.block_size)
        self._stub, self._call = stub, call
        self._handles = count(1)
        self._random = random.Random()  # noqa: S311 - prompts that nobody has asked yet

    def prompt(self, tokens: int) -> bytes:
        return array("I", [self._random.randrange(self.status.vocab_size) for _ in range(tokens)]).tobytes()

    async def ask(self, prompt: bytes, pull: Pull | None = None) -> pb.Started:
        """What the worker says of it with its first token. Raises ConfigError."""
        handle = next(self._handles)
        submit = pb.Submit(
            handle=handle,
            prompt_tokens=len(prompt) // TOKEN_BYTES,
            token_ids=prompt[:FRAME_BYTES],
            sampling=pb.Sampling(max_tokens=1),
            pull=pull,
        )
        await self._call.write(pb.ServeRequest(submit=submit))
        for start in range(FRAME_BYTES, len(prompt), FRAME_BYTES):
            frame = pb.PromptFrame(handle=handle, token_ids=prompt[start : start + FRAME_BYTES])
            await self._call.write(pb.ServeRequest(prompt=frame))
        started = pb.Started()
        async with asyncio.timeout(_ANSWER_S):
            async for response in self._call:
                for output in response.outputs:
                    if output.HasField("started"):
                        started = output.started
                    if output.ending.reason > pb.Ending.LENGTH:
                        raise ConfigError(f"--measure: {self.address}: {output.ending.message}")
                    if output.HasField("ending"):
                        return started
        raise ConfigError(f"--measure: {self.address}: the worker ended the stream")

    async def clock_s(self) -> float:
        status: pb.StatusResponse = await self._stub.Status(pb.StatusRequest())
        return status.load.clock_s


@asynccontextmanager
async def _bench(address: str, tls: Tls | None) -> AsyncIterator[_Bench]:
    async with connect(address, tls) as channel:
        stub = WorkerStub(channel)  # type: ignore[no-untyped-call]
        status = await stub.Status(pb.StatusRequest(), timeout=10.0)
        call = stub.Serve()
        await call.write(pb.ServeRequest(open=pb.Open(gateway_id=f"breakeven-{secrets.token_hex(4)}")))
        try:
            yield _Bench(address, stub, call, status)
        finally:
            call.cancel()


async def _prefills(target: _Bench) -> list[tuple[int, float]]:
    """Tokens and seconds, from short to long."""
    status, seen = target.status, []
    most = min(status.max_context - 1, status.total_blocks * status.block_size // 2, _LONGEST)
    length = min(_SHORTEST, most)
    while length <= most:
        started = [await target.ask(target.prompt(length)) for _ in range(2)]
        seen.append((length, min(each.prefill_s for each in started)))
        if seen[-1][1] > _LONG_S:
            break
        length *= 2
    return seen


async def _link(source: _Bench, target: _Bench, granter: Granter, longest: int) -> Link:
    """A short pull and a long one. Raises ConfigError."""
    pulls = []
    for tokens in (max(longest // 8, source.status.block_size), longest):
        prompt = source.prompt(tokens)
        await source.ask(prompt)
        pulled = (await target.ask(prompt, await _pull(source, target, granter, prompt))).pulled
        if pulled.failure or not pulled.bytes:
            raise ConfigError(
                f"--measure: the pull from {source.address} failed: {pulled.failure or 'no bytes'}"
            )
        pulls.append((float(pulled.bytes), pulled.seconds))
    return link_of(*pulls)


async def _pull(source: _Bench, target: _Bench, granter: Granter, prompt: bytes) -> Pull:
    """A pull of all full blocks, except for one that has the last token."""
    size = source.status.block_size
    hashes = chain(source.root, prompt[: (len(prompt) // TOKEN_BYTES - 1) // size * size * TOKEN_BYTES], size)
    claims = Claims(
        source=source.status.worker,
        target=target.status.worker,
        epoch=source.status.epoch,
        root=source.root,
        keys=keys(hashes),
        expires_s=await source.clock_s() + GRANT_TTL_S,
    )
    return Pull(
        source=source.status.worker,
        address=source.address,
        tokens=len(hashes) * size,
        within_s=_PULL_S,
        grant=granter.grant(claims),
    )
