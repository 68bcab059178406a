"""What a decision log tells is enough: fed to a core, it gives the same decisions."""

import json
from array import array
from random import Random
from typing import Any

import msgspec
import pytest
from warmfleet_proto import router_pb2 as pb
from warmfleet_router.core import RouterCore
from warmfleet_router.decisions import chains, lines
from warmfleet_router.decisions.journal import Journal
from warmfleet_router.decisions.player import Judged, Player
from warmfleet_router.decisions.recorder import Record, RecordingCore, RecordingRoster
from warmfleet_router.fleet.roster import Roster
from warmfleet_router.replay.fleet import IDEAL, Fleet, Network
from warmfleet_router.replay.profile import flat
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.routing import Routing
from warmfleet_router.view import Counters

from tests.unit.router.fleet_of import FakeWorker, ask, tokens

BLOCK = 512


class Log:
    """Collects files of lines; takes nothing while ``full``."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self.full = False

    def write(self, line: bytes, fresh: bool) -> bool:
        if self.full:
            return False
        if fresh:
            self.files.append([])
        self.files[-1].append(line)
        return True

    @property
    def lines(self) -> list[bytes]:
        return [line for file in self.files for line in file]


def conversations(requests: int, seed: int = 0) -> Trace:
    random = Random(seed)
    histories = [[1, 2, 3, 100 * c] for c in range(1, 40)]
    made, now = [], 0.0
    for number in range(requests):
        now += random.expovariate(30.0)
        history = random.choice(histories)
        history += [10_000 + 10 * number + i for i in range(random.randrange(1, 4))]
        keys = array("Q", history)
        made.append(Request(now, keys, len(keys) * BLOCK + random.randrange(BLOCK), random.randrange(1, 5)))
    return Trace("made", BLOCK, made)


def recorded(
    log: Log, requests: int, network: Network = IDEAL, file_bytes: int = 1 << 30, **routing: Any
) -> Fleet:
    """Four workers, of which one announces nothing and tells a wrong size."""
    chosen = Routing(**routing)
    core = RecordingCore(chosen, 7, Record(log.write, "now", file_bytes))
    engine = msgspec.structs.replace(flat(0.01, BLOCK), link_bytes_per_s=20e9, link_latency=1e-4)
    fleet = Fleet(chosen, engine, BLOCK, [300] * 4, network=network, core=core, silent={1: 500})
    fleet.run(conversations(requests))
    return fleet


def judged(log_lines: list[bytes]) -> list[Judged]:
    player = Player()
    return [found for line in log_lines if (found := player.take(lines.decode(line)))]


@pytest.mark.parametrize("policy", ["cheapest", "two_choices"])
def test_the_same_decisions_come_out(policy: str) -> None:
    log = Log()
    recorded(log, 2500, Network(delay_s=0.02, loss=0.05), policy=policy, index_blocks=900)
    found = judged(log.lines)
    assert len(found) == 2500
    assert [j.differs for j in found] == [""] * 2500
    keys = conversations(2500).requests
    assert [j.keys.popitem()[1] for j in found] == [r.keys.tobytes() for r in keys]
    assert len({j.line.worker for j in found}) == 4
    assert any(j.line.pull for j in found) is (policy == "cheapest")


def test_a_line_left_out_is_noticed() -> None:
    log = Log()
    recorded(log, 300)
    for kind in (b'"k":"kv"', b'"k":"ended"', b'"k":"first"'):
        kept = [line for line in log.lines if kind not in line]
        assert len(kept) < len(log.lines)
        assert any(j.differs for j in judged(kept)), kind


def test_files_are_bounded_and_go_on_where_the_last_one_ended() -> None:
    log = Log()
    recorded(log, 600, file_bytes=40_000)
    assert len(log.files) > 5
    assert all(sum(map(len, file)) < 60_000 for file in log.files)
    assert [j.differs for j in judged(log.lines)] == [""] * 600
    later = [line for file in log.files[2:] for line in file]  # the first ones have been deleted
    rest = judged(later)
    assert {j.differs for j in rest} == {None}
    trace = {r.keys.tobytes() for r in conversations(600).requests}
    assert all(j.keys.popitem()[1] in trace for j in rest)  # though the requests are still known


def test_lost_lines_are_counted_and_end_what_can_be_replayed() -> None:
    log = Log()
    core = RecordingCore(Routing(), 7, Record(log.write, "now", 1 << 30))
    worker = FakeWorker(core, "w")
    worker.join(0.0)
    prompts = [tokens((300, 400), (n, 40)) for n in range(6)]
    for n, prompt in enumerate(prompts):
        log.full = n in (2, 3)
        core.route(ask(prompt), 100.0 + n)
    found = judged(log.lines)
    assert [j.differs for j in found] == ["", "", None, None]
    assert core.counters.decision_lines_dropped == 2
    assert any(line == b'{"k":"lost","lines":2}' for line in log.lines)
    assert len(found[-1].keys.popitem()[1]) == 27 * 8  # nothing refers to a line that was not written


def test_what_interrupts_a_message_keeps_its_place() -> None:
    """Placements between two slices of one message see half of it, and do again."""
    log = Log()
    core = RecordingCore(Routing(), 7, Record(log.write, "now", 1 << 30))
    workers = [FakeWorker(core, f"w{i}") for i in range(3)]
    for worker in workers:
        worker.join(0.0)
    prompt = tokens((300, 40_000))
    told: list[Any] = []
    ingest = core.roster.ingest
    core.roster.ingest = lambda *a: told.append(ingest(*a)) or iter(())  # type: ignore[method-assign, func-returns-value]
    workers[1].store(prompt, 100.0)
    workers[2].store(tokens((300, 30_000)), 100.0)
    expected = []
    for n, (one, two) in enumerate(zip(*told, strict=False)):
        assert one is two is None
        expected.append(core.route(ask(prompt), 100.0 + n).expected_tokens)
        core.tick(100.5 + n)
    assert sorted(set(expected)) == [8192, 24576, 39999]
    for rest in told:
        list(rest)
    core.route(ask(prompt), 200.0)
    assert {j.differs for j in judged(log.lines)} == {""}
    assert any(b'"open":true' in line for line in log.lines)


def test_lines_are_in_the_order_of_what_happened() -> None:
    log = Log()
    journal = Journal(lines.Begin(1, "now", 0, "p", {}, 1), Counters(), log.write, 1 << 30)
    journal.tick(1.0)
    journal.open(lines.Heard(2.0, "a", 1))
    journal.note(lines.Beat(3.0, "g"))
    journal.open(lines.Heard(4.0, "b", 1))
    journal.tick(5.0)
    journal.close("a")
    journal.close("b")
    told = [(line["k"], line.get("worker"), line.get("open", False)) for line in map(json.loads, log.lines)]
    assert told == [
        ("begin", None, False),
        ("tick", None, False),
        ("kv", "a", True),
        ("beat", None, False),
        ("kv", "b", True),
        ("tick", None, False),
        ("more", "a", False),
        ("more", "b", False),
    ]


def test_restarts_departures_and_silence() -> None:
    log = Log()
    core = RecordingCore(Routing(), 7, Record(log.write, "now", 1 << 30))
    workers = [FakeWorker(core, f"w{i}") for i in range(3)]
    for worker in workers:
        worker.join(0.0)
        worker.store(tokens((300, 800)), 1.0)
    bookings = [core.route(ask(tokens((300, 800), (n, 40)), tenant="t"), 20.0).booking for n in range(5)]
    core.heartbeat(pb.HeartbeatRequest(gateway_id="g", live=pb.LiveBookings(bookings=bookings[:2])), 21.0)
    core.explain(ask(tokens((1, 90))), 21.5)
    workers[1].restart(22.0)
    core.roster.remove(workers[0].address, 23.0)
    while not core.roster.sweep(64):
        pass
    core.tick(24.0)
    for n in range(5):
        core.route(ask(tokens((300, 800), (n, 50))), 25.0 + n)
    assert [j.differs for j in judged(log.lines)] == [""] * 10
    for kind in (b'"beat"', b'"removed"', b'"swept"', b'"broken"', b'"explained"'):
        assert any(b'"k":' + kind in line for line in log.lines), kind


def test_no_line_holds_token_ids() -> None:
    log = Log()
    core = RecordingCore(Routing(), 7, Record(log.write, "now", 1 << 30))
    FakeWorker(core, "w").join(0.0)
    secret = tokens((0x41424344, 1)) * 40
    core.route(ask(secret, salt=b"pepper"), 20.0)
    assert len(log.lines) > 3
    assert not any(b"ABCD" in line or b"QUJDR" in line or b"pepper" in line for line in log.lines)


def test_chains_are_read_back_and_long_conversations_stay_short() -> None:
    random = Random(3)
    writer, reader = chains.Writer(), chains.Reader()
    histories: list[list[int]] = [[random.getrandbits(64) for _ in range(2000)]] * 5
    written = 0
    for _ in range(200):
        number = random.randrange(5)
        history = histories[number][: random.randrange(2001)] if random.random() < 0.2 else histories[number]
        history = histories[number] = history + [random.getrandbits(64) for _ in range(random.randrange(40))]
        packed = array("Q", history).tobytes()
        chain = writer.chain("k", history, packed)
        written += len(chain.keys)
        assert reader.keys(chain) == packed
    assert written < 0.1 * sum(len(h) * 8 for h in histories) * 40


def test_a_model_that_two_kinds_of_workers_serve() -> None:
    log = Log()
    core = RecordingCore(Routing(), 7, Record(log.write, "now", 1 << 30))
    for n in range(4):
        FakeWorker(core, f"w{n}", status={"block_size": 16 + 16 * (n % 2)}).join(0.0)
    for n in range(30):
        core.route(ask(tokens((300, 800), (n % 3, 90))), 20.0 + n)
    found = judged(log.lines)
    assert [j.differs for j in found] == [""] * 30
    assert {len(j.keys) for j in found} == {2}
    assert len({j.line.worker for j in found}) == 4


@pytest.mark.parametrize(
    ("kind", "recording", "quiet"),
    [
        # Follow from what is recorded, or change nothing.
        (
            RouterCore,
            RecordingCore,
            {"route", "decide", "list_workers", "workers", "placements", "recall", "totals"},
        ),
        (
            Roster,
            RecordingRoster,
            {
                "group_of",
                "cursor",
                "complete",
                "follow",  # what it causes is told
                "unmark",
                "fade",
                "computed",
                "answered",
                "tick",
                "measured",
                "changed",
                "failed",
            },
        ),
    ],
)
def test_whatever_a_core_is_told_is_written_down(kind: type, recording: type, quiet: set[str]) -> None:
    """A new way in needs a line of its own, or a place among the quiet ones."""
    public = {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
    assert public == (public & set(vars(recording))) | quiet
