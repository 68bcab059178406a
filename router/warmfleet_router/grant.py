"""Grants as the router makes them: which worker may have which blocks of which other, and for how long."""

from warmfleet_proto.grant import seal, source_key
from warmfleet_proto.transfer_pb2 import Claims, Grant


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
