"""Grants as a source checks them, before it looks at a single block."""

from struct import unpack
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from warmfleet_proto.grant import is_sealed
from warmfleet_proto.limits import GRANT_BLOCKS, HASH_BYTES, KEY_BYTES
from warmfleet_proto.transfer_pb2 import Claims, Grant

from warmfleet_worker.transfer.refusal import Refusal, Refused


class Allowed(NamedTuple):
    """What a valid grant lets its target have."""

    root: bytes
    first: int  # depth of the first key
    keys: bytes


class Gatekeeper:
    """``key`` is what the fleet key makes of this worker's name (grant.source_key)."""

    def __init__(self, name: str, epoch: int, key: bytes) -> None:
        self._name = name
        self._epoch = epoch
        self._key = key

    def allowed(self, grant: Grant, target: str, now: float) -> Allowed:
        """Raises Refused. ``now`` is on the worker's own clock, as in its reports."""
        if not is_sealed(self._key, grant.claims, grant.mac):
            raise Refused(Refusal.FORGED, "the grant's seal is not the router's")
        claims = _parsed(grant.claims)
        if claims.source != self._name:
            raise Refused(Refusal.OTHER_SOURCE, f"the grant is on blocks of {claims.source!r}")
        if claims.epoch != self._epoch:
            raise Refused(Refusal.OTHER_EPOCH, "the grant is on blocks of an earlier incarnation")
        if claims.target != target:
            raise Refused(Refusal.OTHER_TARGET, f"the grant is for {claims.target!r}, not for {target!r}")
        if not now < claims.expires_s:
            raise Refused(Refusal.EXPIRED, f"the grant expired {now - claims.expires_s:.3f} s ago")
        return Allowed(claims.root, claims.first, claims.keys)


def granted_hashes(allowed: Allowed, first: int, hashes: bytes) -> list[bytes]:
    """``hashes`` (packed, of consecutive blocks from depth ``first``) one by one. Raises Refused."""
    if not hashes or len(hashes) % HASH_BYTES:
        raise Refused(Refusal.MALFORMED, f"hashes has {len(hashes)} bytes: not a positive multiple of 16")
    wanted = [*unpack(f"{HASH_BYTES}s" * (len(hashes) // HASH_BYTES), hashes)]
    start = (first - allowed.first) * KEY_BYTES
    keys = np.frombuffer(hashes, np.uint64)[:: HASH_BYTES // KEY_BYTES].tobytes()
    if start < 0 or allowed.keys[start : start + len(keys)] != keys:
        raise Refused(
            Refusal.NOT_GRANTED, f"blocks {first} to {first + len(wanted)} of the prefix are not granted"
        )
    return wanted


def _parsed(signed: bytes) -> Claims:
    """A router's own claims; checked all the same, since routers differ in age."""
    try:
        claims = Claims.FromString(signed)
    except DecodeError:
        raise Refused(Refusal.MALFORMED, "the grant's claims cannot be read") from None
    if len(claims.root) != HASH_BYTES or len(claims.keys) % KEY_BYTES:
        raise Refused(Refusal.MALFORMED, "the grant's root or keys have a wrong length")
    if len(claims.keys) > GRANT_BLOCKS * KEY_BYTES:
        raise Refused(Refusal.MALFORMED, f"the grant names more than {GRANT_BLOCKS} blocks")
    return claims
