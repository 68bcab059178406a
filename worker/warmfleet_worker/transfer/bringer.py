"""Brings what the router names by keys, and no request here waits for.

A peer lends the blocks and says for which tokens they stand; only then does this worker know their
BlockHashes, which must have the keys that it was told. From there on it is a pull like that of any request.
What the worker's own lower tiers have of it is loaded first.
"""

import logging
from collections.abc import Sequence as Keys
from itertools import count

from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.hashing import chain, keys
from warmfleet_proto.limits import GRANT_BLOCKS, HASH_BYTES, KEY_BYTES, TOKEN_BYTES
from warmfleet_proto.transfer_pb2 import LeaseRequest, LeaseResponse
from warmfleet_proto.transfer_pb2 import Pulled as WirePulled
from warmfleet_proto.worker_pb2 import BringRequest, BringResponse

from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.prefix import Node
from warmfleet_worker.runner import Runner
from warmfleet_worker.sequence import Key, Params, Request, new_sequence
from warmfleet_worker.submission import pull_of
from warmfleet_worker.tiers.below import Below
from warmfleet_worker.transfer.peers import Peers
from warmfleet_worker.transfer.pull import Failure, Pull, Pulled
from warmfleet_worker.transfer.trip import Failed

_log = logging.getLogger(__name__)

MAX_BRINGS = 4  # under way at once
_LOAD_S = 5.0  # for a run from a lower tier


class Bringer:
    """``name`` is this worker's, as grants call it."""

    def __init__(self, name: str, runner: Runner, peers: Peers, below: Below | None = None) -> None:
        self._name = name
        self._runner = runner
        self._peers = peers
        self._below = below
        self._numbers = count(1)
        self._under_way = 0

    async def bring(self, request: BringRequest) -> BringResponse:
        """Raises BadRequest and Rejected; a pull that fails is an answer."""
        pull = self._checked(request)
        if self._runner.scheduler.draining:
            raise Rejected("the worker is draining")
        if self._under_way == MAX_BRINGS:
            raise Rejected(f"{MAX_BRINGS} are under way: no more are brought at once")
        self._under_way += 1
        try:
            before = len(self._held(request))
            pulled = await self._bring(request, pull)
            held = len(self._held(request))
        finally:
            self._under_way -= 1
        size = self._runner.engine.block_size
        return BringResponse(
            held_tokens=held * size,
            pulled=WirePulled(
                tokens=max(held - before, 0) * size,
                seconds=pulled.seconds,
                bytes=pulled.bytes,
                wasted_bytes=pulled.wasted_bytes,
                failure=pulled.failure,
            ),
        )

    def _checked(self, request: BringRequest) -> Pull:
        if len(request.root) != HASH_BYTES:
            raise BadRequest(f"root has {len(request.root)} bytes: expected {HASH_BYTES}", "root")
        blocks, rest = divmod(len(request.keys), KEY_BYTES)
        if rest or not 0 < blocks <= GRANT_BLOCKS:
            raise BadRequest(f"keys has {len(request.keys)} bytes: expected 1 to {GRANT_BLOCKS} keys", "keys")
        size = self._runner.engine.block_size
        pull = pull_of(request.pull, blocks * size, size)
        if pull.first + pull.blocks != blocks:
            raise BadRequest("pull: its last block is not the last of keys", "pull")
        return pull

    def _held(self, request: BringRequest) -> list[Node]:
        return self._runner.scheduler.cache.named(request.root, request.keys, 0)

    async def _load(self, request: BringRequest) -> None:
        """What the lower tiers have of it, a run of one tier after the other."""
        before = -1
        while before < (held := len(nodes := self._held(request))) < len(request.keys) // KEY_BYTES:
            before = held
            if not (token_ids := await self._stored(request, held)):
                break
            prompt = b"".join([node.token_ids for node in nodes]) + token_ids
            hashes = chain(request.root, prompt, self._runner.engine.block_size)
            await self._runner.bring(new_sequence(self._asked(request, prompt, hashes)), _LOAD_S)

    async def _stored(self, request: BringRequest, depth: int) -> bytes:
        """Token ids of the run from there on that the nearest tier has."""
        if self._below is None:
            return b""
        rest = request.keys[depth * KEY_BYTES :]
        if nodes := self._below.host.cache.named(request.root, rest, depth):
            return b"".join([node.token_ids for node in nodes])
        if self._below.store is None:
            return b""
        hashes = self._below.store.catalogue.named(request.root, rest, depth)
        records = await self._below.records(request.root, hashes)
        return b"".join([record.token_ids for record in records.values()])

    async def _bring(self, request: BringRequest, pull: Pull) -> Pulled:
        """Loads what the own lower tiers have, then pulls the rest from the peer: a fetch is from one
        source."""
        began, failure = self._runner.now(), Failure.NONE
        await self._load(request)
        held = self._held(request)
        try:
            if len(held) < pull.first + pull.blocks:
                return await self._pull(request, pull, held)
        except Failed as error:
            _log.info("nothing brought from %s: %s (%s)", pull.source, error, error.failure)
            failure = error.failure
        return Pulled(self._runner.now() - began, 0, 0, failure)

    async def _pull(self, request: BringRequest, pull: Pull, held: Keys[Node]) -> Pulled:
        """Raises Failed."""
        if len(held) < pull.first:
            raise Failed(Failure.GONE, "what comes before the run is not here any more")
        began = self._runner.now()
        lease = await self._lease(pull, len(held))
        try:
            wanted = self._wanted(request, pull, held, lease.token_ids)
            if not await self._runner.bring(new_sequence(wanted), pull.within_s):
                raise Failed(Failure.FULL, "no room, or it is on its way already")
        finally:
            await self._peers.release(pull.address, lease.lease, lease.secret)
        # A request that waits for it as well has it brought on, and told then.
        return wanted.pulled or Pulled(self._runner.now() - began, 0, 0, Failure.GIVEN_UP)

    async def _lease(self, pull: Pull, first: int) -> LeaseResponse:
        """A lease of what the grant names and is not held here. It keeps the blocks there until the pull has
        a lease of its own. Raises Failed."""
        request = LeaseRequest(
            target=self._name, grant=pull.grant, layout_fingerprint=self._runner.engine.layout, first=first
        )
        return await self._peers.lease(pull.address, request)

    def _wanted(self, request: BringRequest, pull: Pull, held: Keys[Node], token_ids: bytes) -> Request:
        """A request as if somebody had asked for the prefix, as far as it is lent. Raises Failed if its
        tokens have other keys than were named."""
        prompt = b"".join([node.token_ids for node in held]) + token_ids
        hashes = chain(request.root, prompt, self._runner.engine.block_size)
        named, blocks = keys(hashes), len(hashes) - len(held)
        whole = len(prompt) == len(hashes) * self._runner.engine.block_size * TOKEN_BYTES
        if not whole or blocks <= 0 or named != request.keys[: len(named)]:
            raise Failed(Failure.CORRUPT, "the source's blocks stand for other tokens")
        wanted = self._asked(request, prompt, hashes)
        wanted.pull = pull._replace(first=len(held), blocks=blocks)
        return wanted

    def _asked(self, request: BringRequest, prompt: bytes, hashes: list[bytes]) -> Request:
        key, params = Key("", next(self._numbers)), Params(Sampling(), max_tokens=0)
        return Request(key, "", request.root, prompt, hashes, params, self._runner.now())
