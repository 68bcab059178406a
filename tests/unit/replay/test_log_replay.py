"""`warmfleet replay` and `warmfleet fit` over a decision log."""

import json
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_proto.work import Work, work_of
from warmfleet_router.decisions import lines
from warmfleet_router.decisions.recorder import Record, RecordingCore
from warmfleet_router.replay import command, fit
from warmfleet_router.replay.fitting import NAMES
from warmfleet_router.replay.fleet import Fleet
from warmfleet_router.replay.history import history
from warmfleet_router.replay.profile import Profile, profile_of
from warmfleet_router.replay.steps import steps_of
from warmfleet_router.routing import Routing

from tests.unit.decisions.test_decisions import BLOCK, Log, conversations

ENGINE = Profile(
    prefill_base=1e-3,
    prefill_token=4e-5,
    prefill_pair=1e-9,
    decode_base=5e-3,
    decode_sequence=1e-4,
    decode_token=2e-8,
    chunk_tokens=2048,
    max_running=16,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of a router that placed in turns: the hit rate is lost at the placement."""
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    assert record(path, ENGINE, speed=0.3) > 1
    return path


def record(path: Path, engine: Profile, speed: float) -> int:
    """What a router logs whose workers are such engines; how many files that are."""
    made, routing = Log(), Routing(policy="round_robin", index_blocks=5000)
    core = RecordingCore(routing, 7, Record(made.write, "now", 200_000))
    fleet = Fleet(routing, engine, BLOCK, [300] * 4, core=core)
    trace = conversations(700)
    long = [r._replace(completion_tokens=20 * r.completion_tokens) for r in trace.requests]
    fleet.run(trace._replace(requests=long), speed)
    for number, written in enumerate(reversed(made.files)):
        name = path.with_name(f"decisions.jsonl.{number}") if number else path
        name.write_bytes(b"\n".join(written) + b"\n")
    return len(made.files)


def oldest(log: Path) -> Path:
    return max(log.parent.glob(f"{log.name}.*"), key=lambda path: int(path.suffix[1:]))


def run(kind: Any, *arguments: str) -> int:
    parser = ArgumentParser()
    kind.configure(parser)
    status: int = kind.run(parser.parse_args(arguments))
    return status


def test_the_ladder_and_the_counterfactual(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    assert run(command, "--trace", str(log), "--policy", "round_robin,cheapest", "--json", str(rows)) == 0
    said = capsys.readouterr().out
    assert "700 placements by round_robin" in said
    assert "700 of 700 are the same decisions" in said
    rungs = [line.split() for line in said.splitlines() if line.startswith("  ")]
    infinite, pooled, best, ours, delivered = (float(next(w for w in r if w[0].isdigit())) for r in rungs[:5])
    assert infinite >= pooled > best > ours > delivered > 0.1
    turns, cheapest = json.loads(rows.read_bytes())
    assert turns["hit"] == pytest.approx(delivered, abs=0.03)  # the model of the fleet that was recorded
    assert cheapest["hit"] > 1.2 * turns["hit"]
    assert cheapest["finished"] == 700


def test_the_engine_is_fitted_to_the_log(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fit, str(log), "--name", "mine", "--chunk-tokens", "2048") == 0
    said = capsys.readouterr()
    profile = tmp_path / "mine.toml"
    profile.write_text(said.out)
    found = profile_of(str(profile))
    assert (found.name, found.max_running, found.chunk_tokens) == ("mine", 16, 2048)
    for step in ([(500, 0)], [(2000, 0)], [(1000, 4000)], [(1, 2000)], [(1, 5000)] * 4, [(1, 7500)] * 8):
        assert found.step_s(work_of(step)) == pytest.approx(ENGINE.step_s(work_of(step)), rel=0.1)
    assert "median error" in said.err


@pytest.mark.parametrize("depth", [1, 2])
def test_of_workers_that_never_rest_the_steps_are_found_in_their_reports(tmp_path: Path, depth: int) -> None:
    """No prompt has one to itself. Planned ahead, a step's tokens are admitted while the one before runs."""
    path = tmp_path / "decisions.jsonl"
    record(path, msgspec.structs.replace(ENGINE, depth=depth, chunk_tokens=512), speed=3.0)
    found, samples = fit.of_log(str(path), Profile())
    assert fit.error(found, samples) < 0.001
    assert (found.chunk_tokens, found.depth) == (512, depth)
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(ENGINE, name), rel=0.01), name


def test_steps_are_taken_together_while_a_worker_does_not_rest() -> None:
    """One that plans ahead tells some of a step's time with the next; over a few of them it adds up."""
    told, seconds, work = [lines.Heard(0.0, "a", 7, {})], 0.0, Work()
    for number in range(1, 11):
        seconds += 1.9 if number % 2 else 0.1
        work = work.plus(Work(1, 100, 5000))
        load = {"step_seconds_total": seconds, "work": work._asdict(), "running": number not in (5, 10)}
        told.append(lines.Heard(float(number), "a", 7, load))
    assert [work.prompt_steps for _, work in steps_of(told)] == [4, 1, 4, 1]
    assert [seconds for seconds, _ in steps_of(told)] == pytest.approx([4.0, 1.9, 4.0, 0.1])


def test_how_far_steps_are_planned_ahead_is_what_the_workers_tell(log: Path, tmp_path: Path) -> None:
    for path in log.parent.glob("decisions.jsonl*"):
        text = path.read_bytes().splitlines(keepends=True)
        told = [s.replace(b'"depth":1', b'"depth":2') if b'"joined"' in s else s for s in text]
        (tmp_path / path.name).write_bytes(b"".join(told))
    for folder, depth in ((log.parent, 1), (tmp_path, 2)):
        found, _ = fit.of_log(str(folder / log.name), Profile(chunk_tokens=2048))
        assert found.depth == depth


def test_steps_are_read_from_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [{"seconds": 0.01 * n, "chunks": [[100 * n, 0]]} for n in range(1, 6)]
    path = tmp_path / "steps.json"
    outputs = []
    for text in (json.dumps(steps), "\n".join(map(json.dumps, steps))):
        path.write_text(text)
        assert run(fit, str(path)) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert tomllib.loads(outputs[0])["prefill_token"] == pytest.approx(1e-4)


def test_what_links_carried_is_read_out_of_the_log(tmp_path: Path) -> None:
    steps = [{"pulled_bytes": 6_000_000, "pull_s": 0.003}, {"loaded_bytes": 10_000_000, "load_s": 0.001}, {}]
    path = tmp_path / "log.jsonl"
    told = [lines.Begin(1, "now", 0, "cheapest", {}, 1)]
    for number, fields in enumerate(steps * 2, 1):
        work = {"prompt_steps": number, "prompt_tokens": 100 * number**2}
        load = {"step_seconds_total": 0.01 * number**2, "work": work}
        told += [lines.Heard(number, "a", 7, load), lines.First(number, fields)]
    path.write_bytes(b"".join(lines.encode(line) + b"\n" for line in told))
    found, measured = fit.of_log(str(path), Profile())
    assert len(measured) == 5
    assert (found.link_bytes_per_s, found.host_bytes_per_s) == (pytest.approx(2e9), pytest.approx(1e10))
    assert found.prefill_token == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("known", "delivered"), [(True, 64), (False, None)], ids=["told with the end", "never told"]
)
def test_cached_tokens_may_come_late_or_not_at_all(known: bool, delivered: int | None) -> None:
    placed = lines.Placed(
        1.0, lines.Asked(100, "m", [lines.Chain("f/16", b"k" * 48)]), 7, "a", "w", "", {}, 64, 48, 0.1
    )
    finish = {"booking": 7, "completion_tokens": 5, "cached_tokens": 64, "cached_known": known}
    told = history([placed, lines.First(2.0, {"booking": 7, "cached_later": True}), lines.Ended(3.0, finish)])
    (request,) = told.requests
    assert (request.delivered, request.completion_tokens, told.block_size) == (delivered, 5, 16)
    assert told.trace("t").requests[0].keys.tobytes() == b"k" * 48


@pytest.mark.parametrize(
    ("text", "says"),
    [("[]", "0 steps"), ("{", "steps.json"), ('[{"seconds": 1, "tokens": 2}]', "tokens")],
)
def test_bad_steps_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        run(fit, str(path))


def test_a_decision_that_comes_out_otherwise_is_shown(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a change of the code, or of the log."""
    path = tmp_path / "changed.jsonl"
    lines = oldest(log).read_bytes().splitlines()
    number, line = [(n, line) for n, line in enumerate(lines) if b'"k":"placed"' in line][4]
    lines[number] = line.replace(b'"reason":"its turn"', b'"reason":"its luck"')
    assert lines[number] != line
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert run(command, "--trace", str(path), "--engine", "flat") == 0
    said = capsys.readouterr().out
    count = sum(b'"k":"placed"' in line for line in lines)
    assert f"replayed, {count - 1} of {count} are the same decisions" in said
    assert "first difference: placement 5: reason its turn, logged its luck" in said


def test_a_log_without_steps_is_played_on_a_flat_engine(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Servers of other engines tell none."""
    path = tmp_path / "servers.jsonl"
    lines = [json.loads(line) for line in oldest(log).read_bytes().splitlines()]
    for line in lines:
        line.get("load", {}).pop("work", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(command, "--trace", str(path)) == 0
    said = capsys.readouterr().out
    assert "hit rate of prompt tokens:" in said
    assert "engine flat, since the log tells no steps (--engine names another):" in said
    with pytest.raises(ConfigError, match="0 steps to learn from"):
        run(fit, str(path))


def _cut(lines: list[bytes]) -> list[bytes]:
    return lines[:3]


def _late(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"part":0', b'"part":3'), *lines[1:]]


@pytest.mark.parametrize(
    ("change", "says"), [(_cut, "without a placement"), (_late, "0 of 0 are the same")], ids=["cut", "late"]
)
def test_logs_that_tell_less(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: Callable[[list[bytes]], list[bytes]], says: str,
) -> None:  # fmt: skip
    lines = log.with_name("decisions.jsonl.5").read_bytes().splitlines()
    path = tmp_path / "other.jsonl"
    path.write_bytes(b"\n".join(change(lines)) + b"\n")
    if change is _cut:
        with pytest.raises(ConfigError, match=says):
            run(command, "--trace", str(path))
    else:
        assert run(command, "--trace", str(path), "--capacity", "300", "--engine", "flat") == 0
        assert says in capsys.readouterr().out
