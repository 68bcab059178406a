"""Whole fleets in virtual time."""

from array import array
from pathlib import Path
from random import Random
from typing import get_args

import msgspec
import pytest
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.settings import load as load_settings
from warmfleet_router.replay import capacity, report, trace
from warmfleet_router.replay.fleet import IDEAL, Fleet, Network, Routers
from warmfleet_router.replay.profile import Profile, flat
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import PolicyName, Routing

from tests.bars.played import spaced
from tests.bars.traffic import conversation
from tests.unit.replay.written import write

BLOCK = 512
DECODING = Profile(prefill_token=4e-5, decode_base=5e-3, decode_sequence=1e-4, max_running=16)


def conversations(requests: int, seed: int = 0) -> Trace:
    """Turns of a few conversations that share their first blocks."""
    random = Random(seed)
    histories = [[1, 2, 3, 100 * c] for c in range(1, 9)]
    made, now = [], 0.0
    for number in range(requests):
        now += random.expovariate(20.0)
        history = random.choice(histories)
        history += [10_000 + 10 * number + i for i in range(random.randrange(1, 4))]
        keys = array("Q", history)
        made.append(Request(now, keys, len(keys) * BLOCK + random.randrange(BLOCK), random.randrange(1, 200)))
    return Trace("made", BLOCK, made)


def play(policy: str, network: Network = IDEAL, requests: int = 300, seed: int = 0) -> Fleet:
    routing = load_settings(Routing, None, [f"policy={policy}"])
    fleet = Fleet(routing, DECODING, BLOCK, [400] * 4, network=network, seed=seed)
    fleet.run(conversations(requests))
    return fleet


def herd(requests: int) -> Trace:
    """One long prefix that all prompts share, more of them than one worker can serve."""
    random, made, now = Random(0), [], 0.0
    for number in range(requests):
        now += random.expovariate(12.0) if number > 1 else 12.0 * number  # the first one computes it
        keys = array("Q", [*range(100), 1000 + number])
        made.append(Request(now, keys, len(keys) * BLOCK, 1))
    return Trace("herd", BLOCK, made)


def test_pulls_bring_what_is_elsewhere_and_leave_nothing_pinned() -> None:
    shown = []
    for link in (0.0, 1e3, 12.5e9):
        profile = msgspec.structs.replace(flat(0.1, BLOCK), link_bytes_per_s=link)
        fleet = Fleet(Routing(link_bytes_per_s=12.5e9), profile, BLOCK, [400] * 4)
        fleet.run(herd(300))
        shown.append(report.summarise("p", fleet, 25.0))
        assert all(m.worker.cache.available == 400 for m in fleet.members)
        assert not any(m.worker.waiting for m in fleet.members)
    forbidden, throttled, allowed = shown
    assert forbidden.pulled_blocks == throttled.pulled_blocks == 0
    assert throttled.finished == 300, "a pull that takes too long is given up"
    assert throttled.ttft_mean < 2.0 * forbidden.ttft_mean, "and not tried for long"
    assert allowed.pulled_blocks in (100, 200, 300), "once to each: siblings wait for the first pull"
    assert allowed.hit == forbidden.hit
    assert allowed.ttft_mean < 0.2 * forbidden.ttft_mean


def test_host_memory_serves_what_the_device_gave_up() -> None:
    """A small device pool above host memory hits like one large pool, and the index knows of both."""
    shown = []
    profile = msgspec.structs.replace(DECODING, host_bytes_per_s=55e9)
    for device, host in ((120, 0), (120, 280), (400, 0)):
        fleet = Fleet(Routing(), profile, BLOCK, [device] * 4, host_blocks=host)
        fleet.run(conversations(300))
        fleet.rest(1.0, IDEAL)
        shown.append(report.summarise("p", fleet, 15.0))
        for member in fleet.members:
            worker = fleet.core.roster.fleet.workers[member.address]
            group = fleet.core.roster.group_of(worker)
            assert group is not None
            below = member.announcer.present(pb.HOST) if host else []
            assert all(member.worker.held([key]) for key in below)
            present = {*member.announcer.present(), *below}
            assert group.index.held(worker.slot) == len(present)
            assert member.worker.cache.available == device
    small, tiered, large = shown
    assert small.hit < tiered.hit - 0.1
    assert tiered.hit > large.hit - 0.04
    assert tiered.ttft_mean < small.ttft_mean


def rows(fleet: Fleet) -> bytes:
    return report.to_json([report.summarise("p", fleet, 10.0)])


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_every_request_ends_once_and_nothing_stays_booked(policy: str) -> None:
    fleet = play(policy)
    assert len(fleet.outcomes) == 300
    assert fleet.core.totals(fleet.now).bookings == 0
    for member in fleet.members:
        assert member.worker.cache.available == 400
        assert not member.worker.running
        assert not member.worker.waiting


def test_the_same_seed_gives_the_same_bytes() -> None:
    network = Network(delay_s=0.05, loss=0.1)
    assert rows(play("two_choices", network, seed=3)) == rows(play("two_choices", network, seed=3))
    assert rows(play("two_choices", network, seed=3)) != rows(play("two_choices", network, seed=4))


def test_the_cheapest_beats_turns() -> None:
    cheap, turns = (report.summarise(p, play(p), 10.0) for p in ("cheapest", "round_robin"))
    assert cheap.hit > 1.2 * turns.hit
    assert cheap.ttft_mean < turns.ttft_mean


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_the_index_equals_the_truth_when_loss_has_healed(loss: float) -> None:
    fleet = play("cheapest", Network(delay_s=0.02, loss=loss))
    fleet.rest(2.0, IDEAL)
    for member in fleet.members:
        roster = fleet.core.roster
        worker = roster.fleet.workers[member.address]
        group = roster.group_of(worker)
        assert group is not None
        assert group.index.held(worker.slot) == len(member.announcer.present()) == len(member.worker.cache)
        group.index.remove(
            worker.slot, 1, b"".join(k.to_bytes(8, "little") for k in member.announcer.present())
        )
        assert group.index.held(worker.slot) == 0


def test_a_flat_engine_serves_one_prompt_after_another() -> None:
    made = Trace("t", BLOCK, [Request(0.0, array("Q", [n]), BLOCK, 1) for n in range(1, 4)])
    fleet = Fleet(Routing(), flat(0.025, BLOCK), BLOCK, [10])
    fleet.run(made)
    assert [round(o.ttft_s, 6) for o in fleet.outcomes] == [0.025, 0.05, 0.075]


def test_bounds_of_the_hit_rate() -> None:
    chains = [1, 2], [1, 2], [3], [1, 4]
    made = Trace("t", 1, [Request(0.0, array("Q", keys), len(keys) + 1, 1) for keys in chains])
    assert report.bounds(made, 100) == (3 / 11, 3 / 11)
    assert report.bounds(made, 1).pooled < 3 / 11


def test_a_trace_is_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "made_blk512.jsonl"
    made = conversations(20)
    write(path, made)
    read = trace.load(str(path))
    assert [(r.prompt_tokens, len(r.keys)) for r in read.requests] == [
        (r.prompt_tokens, len(r.keys)) for r in made.requests
    ]
    assert len({k for r in read.requests for k in r.keys}) == len({k for r in made.requests for k in r.keys})


@pytest.mark.parametrize("line", ["{", '{"timestamp": 1}', '{"timestamp": "x"}'])
def test_a_bad_trace_is_refused_by_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad_blk512.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match="bad_blk512"):
        trace.load(str(path))


def test_capacity_search_finds_the_edge() -> None:
    row = report.summarise("p", play("cheapest", requests=5), 1.0)
    found = capacity.search(capacity.parse("ttft_p99<10"), lambda speed: row._replace(ttft_p99=speed * 2))
    assert 4.9 < found < 5.0
    with pytest.raises(ConfigError, match="ttft_p98"):
        capacity.parse("ttft_p98<10")


def test_routers_side_by_side_place_as_one_would() -> None:
    """Each knows its own bookings alone; workers tell them the rest. Also where roots do not part them."""
    trace, shown = spaced(conversation(600)), []
    for number, in_turn in [(1, False), (2, False), (4, True)]:
        routers = Routers(number, in_turn)
        fleet = Fleet(
            Routing(), flat(0.025, BLOCK), BLOCK, [1500] * 4, network=Network(0.01), routers=routers
        )
        fleet.run(trace, 1.8)
        shown.append(report.summarise("p", fleet, trace.span_s / 1.8))
        asked = [core.counters.placements for core in fleet.cores]
        assert sum(asked) == 600
        assert min(asked) > 60, "though all prompts begin with the same block"
        fleet.rest(1.0, IDEAL)
        for core in fleet.cores:
            assert core.totals(fleet.now).bookings == 0
            held = {w.worker: w.held_blocks for w in core.workers(fleet.now)}
            assert held == {f"w{m.index}": len(m.announcer.present()) for m in fleet.members}
    one, *several = shown
    assert 0.6 < one.utilisation < 0.9
    for row in several:
        assert row.hit > one.hit - 0.015  # the bar plays enough of them to say more
        assert row.imbalance < one.imbalance + 0.2
        assert row.ttft_mean < 1.1 * one.ttft_mean
        assert row.error < 0.03
