"""What a placement that pulls carries, and what the router keeps of how pulls went."""

import pytest
from warmfleet_proto import router_pb2 as rpb
from warmfleet_proto.grant import source_key
from warmfleet_proto.hashing import root_hash
from warmfleet_proto.limits import GRANT_TTL_S
from warmfleet_router.core import RouterCore
from warmfleet_router.grant import Granter
from warmfleet_router.moving.moves import MAX_PAIRS, Moves
from warmfleet_worker.transfer.grant import Gatekeeper, granted_hashes
from warmfleet_worker.transfer.refusal import Refused

from tests.unit.router.fleet_of import BLOCK, FINGERPRINT, ask, hashes_of, tokens
from tests.unit.router.test_pulls import givers

FLEET_KEY = bytes(range(32))
PROMPT = tokens((1, 4000))
NOW = 0.1
CLOCK_S = 5000.0  # of the source when the router's is 0


@pytest.fixture
def core() -> RouterCore:
    made, workers = givers(3)
    made.granter = Granter(FLEET_KEY)
    workers[0].report(0.0, running=1, waiting=9, prefill_tokens=50_000, clock_s=CLOCK_S)
    return made


def placed(core: RouterCore) -> rpb.Placement:
    placement = core.route(ask(PROMPT), NOW)
    assert placement.action == rpb.Placement.PULL
    return placement


def test_the_source_accepts_the_grant_until_it_expires_by_its_own_clock(core: RouterCore) -> None:
    placement = placed(core)
    gatekeeper = Gatekeeper("w0", 1, source_key(FLEET_KEY, "w0"))
    until = CLOCK_S + NOW + GRANT_TTL_S
    allowed = gatekeeper.allowed(placement.pull.grant, placement.worker, until - 0.001)
    assert allowed.root == root_hash(FINGERPRINT, BLOCK)
    hashes = hashes_of(PROMPT)[: placement.pull.tokens // BLOCK]
    assert granted_hashes(allowed, 0, b"".join(hashes)) == hashes
    assert len(allowed.keys) == 8 * len(hashes), "no block more"
    with pytest.raises(Refused, match="expired"):
        gatekeeper.allowed(placement.pull.grant, placement.worker, until)
    with pytest.raises(Refused, match="not for"):
        gatekeeper.allowed(placement.pull.grant, "w0", CLOCK_S)


def test_without_a_key_there_is_no_grant(core: RouterCore) -> None:
    core.granter = None
    assert not placed(core).pull.HasField("grant")


def test_a_dry_run_grants_nothing(core: RouterCore) -> None:
    assert not core.explain(ask(PROMPT), NOW).chosen.pull.HasField("grant")


def told(core: RouterCore, **fields: object) -> None:
    placement = placed(core)
    report = {"cached_tokens": 3984, "prefill_s": 0.01, "ttft_s": 0.1, "pull_s": 0.5, **fields}
    core.progress(rpb.ProgressRequest(booking=placement.booking, **report), NOW)


def test_what_pulls_moved_is_kept_by_pair(core: RouterCore) -> None:
    told(core, pulled_tokens=3984, pulled_bytes=4_000_000)
    (moved,) = core.moves
    assert (moved.source, moved.pulls, moved.tokens, moved.bytes) == ("w0", 1, 3984, 4_000_000)
    assert moved.bytes_per_s == 8_000_000
    assert moved.saved_prefill_s == pytest.approx(0.4, rel=0.1), "what computing them was predicted to take"
    assert not moved.failures


def test_what_came_for_nothing_is_kept_too(core: RouterCore) -> None:
    told(core, cached_tokens=0, pulled_bytes=1000, wasted_bytes=5000, pull_failure="given_up")
    (moved,) = core.moves
    assert (moved.tokens, moved.bytes, moved.wasted_bytes, moved.saved_prefill_s) == (0, 1000, 1000, 0.0)
    assert moved.failures == {"given_up": 1}


def test_nonsense_of_a_gateway_is_bounded(core: RouterCore) -> None:
    told(core, pulled_tokens=2**32 - 1, pulled_bytes=2**64 - 1, pull_failure="x" * 1000)
    (moved,) = core.moves
    assert moved.bytes == 1 << 50
    assert moved.failures == {"other": 1}


def test_pairs_are_bounded() -> None:
    moves = Moves()
    for number in range(MAX_PAIRS + 1):
        moves.note("a", str(number), rpb.ProgressRequest(pull_s=1.0), 0.0)
    kept = list(moves)
    assert len(kept) == MAX_PAIRS
    assert kept[0].target == "1"
