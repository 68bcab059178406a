"""Grants: what a router signs is what a source allows, and nothing else is."""

import os
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.grant import seal, source_key
from warmfleet_proto.hashing import chain, keys, root_hash
from warmfleet_proto.transfer_pb2 import Claims, Grant
from warmfleet_router.grant import Granter
from warmfleet_worker.transfer.grant import Allowed, Gatekeeper, granted_hashes
from warmfleet_worker.transfer.refusal import Refusal, Refused

FLEET_KEY = bytes(range(32))
EPOCH = 77
ROOT = root_hash(b"model", 16, salt=b"tenant a")
CHAIN = chain(ROOT, os.urandom(64 * 10), 16)


def claims(**changes: object) -> Claims:
    fields = {
        "source": "a",
        "target": "b",
        "epoch": EPOCH,
        "root": ROOT,
        "first": 2,
        "keys": keys(CHAIN[2:]),
        "expires_s": 50.0,
    }
    return Claims(**{**fields, **changes})


def grant(**changes: object) -> Grant:
    return Granter(FLEET_KEY).grant(claims(**changes))


def gatekeeper(name: str = "a", epoch: int = EPOCH) -> Gatekeeper:
    return Gatekeeper(name, epoch, source_key(FLEET_KEY, name))


def refusal(of: Grant, by: Gatekeeper | None = None, target: str = "b", now: float = 40.0) -> Refusal:
    with pytest.raises(Refused) as raised:
        (by or gatekeeper()).allowed(of, target, now)
    assert raised.value.status == 403
    return raised.value.refusal


def test_what_was_signed_is_allowed() -> None:
    assert gatekeeper().allowed(grant(), "b", 40.0) == Allowed(ROOT, 2, keys(CHAIN[2:]))


def test_each_source_knows_only_its_own_key() -> None:
    known = source_key(FLEET_KEY, "b")
    assert known != source_key(FLEET_KEY, "a")
    signed = claims().SerializeToString()
    assert refusal(Grant(claims=signed, mac=seal(known, signed))) is Refusal.FORGED


def test_a_mac_over_the_claims_alone_is_no_seal() -> None:
    signed = claims().SerializeToString()
    bare = sha256(source_key(FLEET_KEY, "a") + signed).digest()
    assert refusal(Grant(claims=signed, mac=bare)) is Refusal.FORGED
    assert refusal(Grant(claims=signed)) is Refusal.FORGED


@given(st.integers(0, 10_000))
def test_no_bit_can_be_changed(bit: int) -> None:
    made = grant()
    data = bytearray(made.claims + made.mac)
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    changed = Grant(claims=bytes(data[: len(made.claims)]), mac=bytes(data[len(made.claims) :]))
    assert refusal(changed) is Refusal.FORGED


def test_names_epoch_and_expiry_are_checked() -> None:
    assert refusal(grant(), target="c") is Refusal.OTHER_TARGET
    assert refusal(grant(), gatekeeper(epoch=78)) is Refusal.OTHER_EPOCH
    assert refusal(grant(), now=50.0) is Refusal.EXPIRED
    assert refusal(grant(expires_s=float("nan"))) is Refusal.EXPIRED


def test_a_grant_on_another_source_is_refused_even_when_well_signed() -> None:
    signed = claims(source="z").SerializeToString()
    sealed = Grant(claims=signed, mac=seal(source_key(FLEET_KEY, "a"), signed))
    assert refusal(sealed) is Refusal.OTHER_SOURCE


@pytest.mark.parametrize("changes", [{"root": b"short"}, {"keys": b"1234567"}])
def test_well_signed_nonsense_is_refused(changes: dict[str, bytes]) -> None:
    assert refusal(grant(**changes)) is Refusal.MALFORMED
    signed = b"\xff\xff\xff"
    sealed = Grant(claims=signed, mac=seal(source_key(FLEET_KEY, "a"), signed))
    assert refusal(sealed) is Refusal.MALFORMED


def test_only_granted_hashes_come_through() -> None:
    allowed = Allowed(ROOT, 2, keys(CHAIN[2:8]))
    assert granted_hashes(allowed, 3, b"".join(CHAIN[3:8])) == CHAIN[3:8]
    for first, wanted in ((1, CHAIN[1:3]), (2, CHAIN[3:5]), (7, CHAIN[7:9]), (9, CHAIN[9:]), (0, CHAIN)):
        with pytest.raises(Refused) as raised:
            granted_hashes(allowed, first, b"".join(wanted))
        assert raised.value.refusal is Refusal.NOT_GRANTED


@pytest.mark.parametrize("hashes", [b"", b"x" * 15, b"x" * 17])
def test_hashes_of_a_wrong_length_are_refused(hashes: bytes) -> None:
    with pytest.raises(Refused) as raised:
        granted_hashes(Allowed(ROOT, 0, keys(CHAIN)), 0, hashes)
    assert raised.value.refusal is Refusal.MALFORMED


def test_another_tenants_prefix_has_other_keys() -> None:
    other = chain(root_hash(b"model", 16, salt=b"tenant b"), os.urandom(64 * 10), 16)
    with pytest.raises(Refused) as raised:
        granted_hashes(Allowed(ROOT, 0, keys(CHAIN)), 0, b"".join(other))
    assert raised.value.refusal is Refusal.NOT_GRANTED
