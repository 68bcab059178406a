"""Grants as the router makes them: which worker may have which blocks of which other, and for how long."""

from array import array

from warmfleet_proto.grant import seal, source_key
from warmfleet_proto.hashing import root_hash
from warmfleet_proto.limits import GRANT_TTL_S, KEY_BYTES
from warmfleet_proto.transfer_pb2 import Claims, Grant

from warmfleet_router.moving.replication import Order
from warmfleet_router.placement import Decision


class Granter:
    """``fleet_key``: FLEET_KEY_BYTES that all routers of a fleet share, and nobody else."""

    def __init__(self, fleet_key: bytes) -> None:
        self._fleet_key = fleet_key
        self._keys: dict[str, bytes] = {}

    def grant(self, claims: Claims) -> Grant:
        """Signed for the source that the claims name."""
        key = self._keys.get(claims.source)
        if key is None:
            key = self._keys[claims.source] = source_key(self._fleet_key, claims.source)
        signed = claims.SerializeToString()
        return Grant(claims=signed, mac=seal(key, signed))


def claims(decision: Decision, salt: bytes, now: float) -> Claims:
    """On the blocks that the chosen candidate pulls; ``salt`` is of the request's tenant."""
    plan, group = decision.choice.candidate.pull, decision.group
    assert plan is not None
    first, count = plan.from_tokens // group.block_size, plan.tokens // group.block_size
    return Claims(
        source=plan.source.name,
        target=decision.worker.name,
        epoch=plan.source.epoch,
        root=root_hash(group.fingerprint, group.block_size, salt=salt),
        first=first,
        keys=array("Q", decision.ask.keys[first : first + count]).tobytes(),
        expires_s=now + plan.source.clock_ahead_s + GRANT_TTL_S,
    )


def claims_of(order: Order, now: float) -> Claims:
    """On the blocks that its target is to bring."""
    source = order.source
    return Claims(
        source=source.name,
        target=order.target.name,
        epoch=source.epoch,
        root=order.prefix.root,
        first=order.first,
        keys=order.keys[order.first * KEY_BYTES :],
        expires_s=now + source.clock_ahead_s + GRANT_TTL_S,
    )
