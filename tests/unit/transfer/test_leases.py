"""Leases: what is lent stays what it is until the lease ends, and every lease ends in time."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from warmfleet_proto.hashing import chain, keys
from warmfleet_proto.limits import LEASE_TTL_S
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.events import Tier
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.tiers.host import HostTier
from warmfleet_worker.transfer.grant import Allowed
from warmfleet_worker.transfer.leases import MAX_LEASES, Lease, Leases
from warmfleet_worker.transfer.refusal import Refusal, Refused

from tests.unit.worker.test_prefix import fill, packed

ROOT, OTHER = b"a" * 16, b"b" * 16
SECRET = bytes(16)
TOKENS = list(range(12))
CHAIN = chain(ROOT, packed(TOKENS), 2)
ALLOWED = Allowed(ROOT, 0, keys(CHAIN))


def cache_of(total: int = 20) -> PrefixCache:
    cache = PrefixCache(BlockPool(total), 2)
    fill(cache, ROOT, TOKENS)
    return cache


def opened(leases: Leases, hashes: list[bytes], id: int = 1, now: float = 0.0) -> Lease:
    lease = leases.open(id, SECRET, "b", ALLOWED, hashes, now)
    assert lease is not None
    return lease


def test_the_chain_before_the_lent_blocks_is_pinned_as_well() -> None:
    cache = cache_of()
    leases = Leases(cache)
    lease = opened(leases, CHAIN[3:5])
    assert [each.hash for each in lease.lent] == CHAIN[3:5]
    assert b"".join(each.token_ids for each in lease.lent) == packed(TOKENS[6:10])
    assert (cache.pool.pinned, cache.pool.cached) == (5, 1)
    cache.check_integrity()
    assert leases.release(1, SECRET)
    assert (cache.pool.pinned, cache.pool.cached) == (0, 6)
    assert not leases.release(1, SECRET)


def test_lending_does_not_keep_a_block_for_longer() -> None:
    """Whoever has copied it uses the copy."""
    cache = cache_of(total=7)
    fill(cache, ROOT, [99, 99])
    leases = Leases(cache)
    opened(leases, CHAIN[:3])
    assert leases.release(1, SECRET)
    cache.allocate(6)
    assert cache.get(CHAIN[0]) is None
    assert cache.get(chain(ROOT, packed([99, 99]), 2)[0]), "used since"
    cache.check_integrity()


def test_the_longest_readable_run_is_lent() -> None:
    leases = Leases(cache_of())
    assert len(opened(leases, [*CHAIN, b"x" * 16]).lent) == 6
    assert leases.open(2, SECRET, "b", ALLOWED, [b"x" * 16, *CHAIN], 0.0) is None
    gap = opened(leases, [CHAIN[0], CHAIN[2]], id=3)
    assert [each.hash for each in gap.lent] == CHAIN[:1]


def test_a_peer_that_knows_keys_alone_is_lent_what_they_name() -> None:
    leases = Leases(cache_of())
    assert leases.named(ALLOWED, 0) == CHAIN
    assert leases.named(ALLOWED, 4) == CHAIN[4:]
    assert leases.named(Allowed(ROOT, 2, keys(CHAIN[2:4])), 3) == CHAIN[3:4]
    assert leases.named(Allowed(OTHER, 0, keys(CHAIN)), 0) == []
    assert leases.named(Allowed(ROOT, 1, keys(CHAIN)), 1) == [], "they lie elsewhere in the chain"
    for outside in (Allowed(ROOT, 2, keys(CHAIN)), Allowed(ROOT, 0, keys(CHAIN[:1]))):
        with pytest.raises(Refused) as raised:
            leases.named(outside, 1)
        assert raised.value.refusal is Refusal.NOT_GRANTED


def test_a_block_of_another_root_is_refused() -> None:
    leases = Leases(cache_of())
    with pytest.raises(Refused) as raised:
        leases.open(1, SECRET, "b", Allowed(OTHER, 0, keys(CHAIN)), CHAIN, 0.0)
    assert raised.value.refusal is Refusal.OTHER_TENANT
    assert not leases.held()


def test_the_secret_opens_it_until_its_time_is_over() -> None:
    leases = Leases(cache_of())
    lease = opened(leases, CHAIN)
    assert leases.of(1, SECRET, LEASE_TTL_S - 0.1) is lease
    assert leases.of(1, b"\1" * 16, 0.0) is None
    assert leases.of(2, SECRET, 0.0) is None
    assert leases.of(1, SECRET, LEASE_TTL_S) is None
    assert not leases.release(1, b"\1" * 16)
    assert leases.holds(lease, 0, 6, LEASE_TTL_S - 0.1)
    assert not leases.holds(lease, 0, 6, LEASE_TTL_S)
    assert leases.expire(LEASE_TTL_S - 0.1) == 0
    assert leases.expire(LEASE_TTL_S) == 1
    assert not lease.live


class OnDisk:
    """See ``leases.Record``."""

    def __init__(self, position: int, root: bytes = ROOT) -> None:
        self.root = root
        self.token_ids = packed(TOKENS[2 * position : 2 * position + 2])

    def foretell(self) -> None: ...

    def read(self, copy: memoryview) -> None: ...


def host_of(tokens: list[int]) -> HostTier:
    host = HostTier(20, 2)
    for node in fill(host.cache, ROOT, tokens):
        host.sums[node.block] = b"sum"
    return host


def test_each_block_is_lent_from_the_nearest_tier_that_has_it() -> None:
    device, host = PrefixCache(BlockPool(20), 2), host_of(TOKENS[:8])
    fill(device, ROOT, TOKENS[:4])
    leases = Leases(device, host)
    records = {CHAIN[i]: OnDisk(i) for i in (1, 3, 4)}
    assert leases.reach(ROOT, CHAIN) == 4
    assert leases.named(ALLOWED, 0) == CHAIN[:4], "by keys alone"
    lease = leases.open(1, SECRET, "b", ALLOWED, CHAIN, 0.0, records)
    assert lease is not None
    assert [each.tier for each in lease.lent] == [Tier.DEVICE] * 2 + [Tier.HOST] * 2 + [Tier.DISK]
    assert b"".join(each.token_ids for each in lease.lent) == packed(TOKENS[:10])
    assert (device.pool.pinned, host.cache.pool.pinned) == (2, 4), "whole chains, in both"
    assert host.cache.allocate(17) is None
    assert leases.expire(LEASE_TTL_S) == 1
    assert (device.pool.pinned, host.cache.pool.pinned) == (0, 0)
    assert not leases.holds(lease, 4, 1, 0.0), "nor from the disk"


def test_a_copy_known_to_be_wrong_is_not_lent() -> None:
    host = host_of(TOKENS)
    leases = Leases(PrefixCache(BlockPool(20), 2), host)
    node = host.cache.get(CHAIN[2])
    assert node is not None
    host.condemn(node.block)
    assert leases.reach(ROOT, CHAIN) == 2
    lease = leases.open(1, SECRET, "b", ALLOWED, CHAIN, 0.0, {CHAIN[2]: OnDisk(2)})
    assert lease is not None
    assert [each.tier for each in lease.lent][:4] == [Tier.HOST, Tier.HOST, Tier.DISK, Tier.HOST]


def test_another_roots_record_is_not_lent() -> None:
    leases = Leases(PrefixCache(BlockPool(20), 2))
    assert leases.open(1, SECRET, "b", ALLOWED, CHAIN, 0.0, {CHAIN[0]: OnDisk(0, OTHER)}) is None


def test_half_of_the_pool_at_most_is_lent() -> None:
    cache = cache_of(total=12)
    leases = Leases(cache)
    fill(cache, ROOT, [99, 99])
    other = chain(ROOT, packed([99, 99]), 2)
    opened(leases, CHAIN)
    opened(leases, CHAIN, id=2)  # pinned already
    for ended in (1, 2):
        with pytest.raises(Refused) as raised:
            opened(leases, other, id=3)
        assert raised.value.refusal is Refusal.FULL
        leases.release(ended, SECRET)
    opened(leases, other, id=3)


def test_so_many_leases_and_no_more() -> None:
    leases = Leases(cache_of(total=4 * MAX_LEASES))
    for id in range(MAX_LEASES):
        opened(leases, CHAIN[:1], id=id)
    with pytest.raises(Refused, match="256 leases"):
        opened(leases, CHAIN[:1], id=MAX_LEASES)


class LeaseMachine(RuleBasedStateMachine):
    """Leases beside a user of the cache that takes and gives back whatever it can get."""

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.host = PrefixCache(BlockPool(16), 2), HostTier(12, 2)
        self.leases = Leases(self.cache, self.host)
        self.caches = {Tier.DEVICE: self.cache, Tier.HOST: self.host.cache}
        self.now = 0.0
        self.ids = 0
        self.open: dict[int, Lease] = {}
        self.ended: list[Lease] = []
        self.taken: dict[Tier, list[int]] = {tier: [] for tier in self.caches}
        self.refusals: set[Refusal] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=8), tier=st.sampled_from([*Tier][:2]))
    def make(self, tokens: list[int], tier: Tier) -> None:
        cache = self.caches[tier]
        if cache.available >= len(tokens) // 2:
            nodes = cache.match(ROOT, chain(ROOT, packed(tokens), 2), packed(tokens))
            if not nodes:
                made = fill(cache, ROOT, tokens)
                if tier == Tier.HOST:
                    for node in made:
                        self.host.sums[node.block] = b"sum"

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=8), first=st.integers(0, 3))
    def lend(self, tokens: list[int], first: int) -> None:
        hashes = chain(ROOT, packed(tokens), 2)[first:]
        if not hashes:
            return
        self.ids += 1
        try:
            lease = self.leases.open(self.ids, SECRET, "b", Allowed(ROOT, 0, b""), hashes, self.now)
        except Refused as error:
            self.refusals.add(error.refusal)
            return
        if lease is not None:
            self.open[self.ids] = lease

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.open)))
        lease = self.open.pop(id)
        assert self.leases.release(id, SECRET)
        self.ended.append(lease)

    @rule(seconds=st.floats(0, 2 * LEASE_TTL_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        late = {id for id, lease in self.open.items() if lease.until <= self.now}
        assert self.leases.expire(self.now) == len(late)
        self.ended += [self.open.pop(id) for id in late]

    @rule(count=st.integers(1, 16), tier=st.sampled_from([*Tier][:2]))
    def take(self, count: int, tier: Tier) -> None:
        cache = self.caches[tier]
        self.taken[tier] += cache.allocate(min(count, cache.available)) or []

    @rule()
    def give_back(self) -> None:
        for tier, taken in self.taken.items():
            self.caches[tier].release(taken)
            taken.clear()

    @invariant()
    def what_is_lent_stays(self) -> None:
        for lease in self.open.values():
            assert self.leases.holds(lease, 0, len(lease.lent), self.now)
            for each in lease.lent:
                cache = self.caches[each.tier]
                assert cache.get(each.hash) is each

    @invariant()
    def what_has_ended_is_told(self) -> None:
        for lease in self.ended:
            assert not self.leases.holds(lease, 0, len(lease.lent), self.now)
            assert self.leases.of(lease.id, SECRET, self.now) is None

    @invariant()
    def pins_balance(self) -> None:
        for tier, cache in self.caches.items():
            cache.check_integrity()
            pool, lent = cache.pool, self.leases.held(tier)
            held = {*lent, *self.taken[tier]}
            assert held == {block for block in range(pool.total) if pool.is_pinned(block)}
            assert len({*lent}) <= pool.total // 2
        assert len(self.leases) == len(self.open)
        assert self.refusals <= {Refusal.FULL}

    def teardown(self) -> None:
        self.give_back()
        self.leases.expire(self.now + LEASE_TTL_S)
        assert all(cache.pool.pinned == 0 for cache in self.caches.values())


TestLeases = LeaseMachine.TestCase
