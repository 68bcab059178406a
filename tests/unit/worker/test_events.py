"""The presence log against a plain set of what is present."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.hashing import digest_bytes, presence
from warmfleet_worker import events
from warmfleet_worker.events import (
    Appeared,
    Batch,
    Change,
    Cleared,
    Event,
    PresenceLog,
    Removed,
    Stored,
    Tier,
    Vanished,
    Wiped,
)

ROOT = b"r" * 16


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def apply(present: set[tuple[int, bytes]], event: Event) -> None:
    """What a router does with an event."""
    if isinstance(event, Stored):
        for hashed in event.hashes:
            assert (event.tier, hashed) not in present
            present.add((event.tier, hashed))
    elif isinstance(event, Removed):
        for hashed in event.hashes:
            present.remove((event.tier, hashed))
    else:
        present.clear()


def digest(present: set[tuple[int, bytes]]) -> bytes:
    return digest_bytes(sum(presence(hashed, tier) for tier, hashed in present))


def changes(flips: list[tuple[int, Tier]], wipe_at: int | None) -> list[Change]:
    """Each number appears, vanishes, appears ... per tier."""
    present: set[tuple[int, Tier]] = set()
    made: list[Change] = []
    for i, (number, tier) in enumerate(flips):
        if i == wipe_at:
            present.clear()
            made.append(Wiped())
        if (number, tier) in present:
            present.remove((number, tier))
            made.append(Vanished(name(number), tier))
        else:
            present.add((number, tier))
            made.append(Appeared(name(number), name(number - 1) if number else ROOT, number, tier))
    return made


flips = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([Tier.DEVICE, Tier.HOST])), max_size=40)


@given(flips, st.none() | st.integers(0, 39), st.integers(1, 7))
def test_batches_and_snapshots_tell_the_same(
    flips: list[tuple[int, Tier]], wipe_at: int | None, size: int
) -> None:
    log = PresenceLog(7)
    everything = changes(flips, wipe_at)
    snapshots = [(set[tuple[int, bytes]](), 0)]
    for start in range(0, len(everything), size):
        log.publish(everything[start : start + size])
        taken = log.snapshot()
        assert taken.seq == log.seq
        held: set[tuple[int, bytes]] = set()
        for run in taken.stored:
            apply(held, run)
        assert taken.digest == log.digest == digest(held)
        snapshots.append((held, taken.seq))
    final = snapshots[-1][0]
    for held, seq in snapshots:
        batches = log.since(seq)
        assert batches is not None
        for batch in batches:
            for event in batch.events:
                apply(held, event)
            seq += 1
            assert (batch.seq, batch.digest) == (seq, digest(held))
        assert held == final


def test_runs_are_chains_with_their_depth() -> None:
    log = PresenceLog(7)
    log.publish(
        [
            Appeared(name(1), ROOT, 0),
            Appeared(name(2), name(1), 1),
            Appeared(name(9), name(5), 4),
            Appeared(name(10), name(9), 5),
            Vanished(name(10)),
            Vanished(name(9)),
            Wiped(),
            Appeared(name(10), name(9), 5),
        ]
    )
    (batch,) = log.since(0) or []
    assert batch.events == (
        Stored(Tier.DEVICE, 0, (name(1), name(2))),
        Stored(Tier.DEVICE, 4, (name(9), name(10))),
        Removed(Tier.DEVICE, (name(10), name(9))),
        Cleared(),
        Stored(Tier.DEVICE, 5, (name(10),)),
    )
    assert log.snapshot().stored == (Stored(Tier.DEVICE, 5, (name(10),)),)


def test_ring_keeps_the_last_batches_only() -> None:
    log = PresenceLog(7, ring=3)
    for number in range(5):
        log.publish([Appeared(name(number), ROOT, 0)])
    assert [batch.seq for batch in log.since(2) or []] == [3, 4, 5]
    assert log.since(5) == []
    assert log.since(1) is None
    assert log.since(6) is None
    assert log.since(-1) is None


def test_nothing_changed_is_no_batch() -> None:
    log = PresenceLog(7)
    log.publish([])
    assert (log.seq, log.since(0)) == (0, [])


def test_large_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HASHES_PER_MESSAGE", 4)
    log = PresenceLog(7)
    log.publish([Appeared(name(i), name(i - 1), i) for i in range(1, 11)])
    batches: list[Batch] = log.since(0) or []
    assert [sum(len(e.hashes) for e in b.events if isinstance(e, Stored)) for b in batches] == [4, 4, 2]
    assert batches[-1].digest == log.digest
