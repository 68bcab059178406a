"""What ``warmfleet replay`` prints and writes."""

import json
from pathlib import Path

import pytest
from warmfleet_router import cli
from warmfleet_router.replay import report
from warmfleet_router.replay.report import Row

from tests.bars.traffic import conversation
from tests.unit.replay.written import write

FLAGS = ["--no-decode", "--workers", "2", "--capacity", "300"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("trace") / "made_blk512.jsonl"
    write(path, conversation(60))
    return ["replay", "--trace", str(path), *FLAGS]


def test_the_table_says_how_far_predictions_were_off_and_what_was_pulled(
    played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    assert cli.main([*played, "--link", "12.5", "--json", str(path)]) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    shown = dict(
        zip(head.replace("ttft mean", "mean").replace("itl p99", "itl").split(), row.split(), strict=True)
    )
    (written,) = json.loads(path.read_bytes())
    assert shown["error"] == f"{written['error']:.3f}"
    assert shown["pulled"] == str(written["pulled_blocks"])
    assert shown["finished"] == "60"


def test_a_wide_row_stays_a_table() -> None:
    wide = Row("p" * 16, *[9999.0] * len(Row._fields[1:]))._replace(
        **dict.fromkeys(("hit", "goodput", "error"), 0.5),
        **dict.fromkeys(("pulled_blocks", "finished"), 99999999),
        skew=8.0,
        utilisation=12.0,
    )
    head, row = report.table([wide]).splitlines()
    assert len(head) == len(row) <= 120
    assert len(row.split()) == 13


def test_the_speeds_that_hold_are_written(
    played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speeds.json"
    search = ["--policy", "cheapest,round_robin", "--capacity-at", "ttft_p99<10", "--json", str(path)]
    assert cli.main([*played, *search]) == 0
    said = capsys.readouterr().out.splitlines()
    speeds = json.loads(path.read_bytes())
    assert [(s["policy"], s["holds"]) for s in speeds] == [
        (p, "ttft_p99<10") for p in ("cheapest", "round_robin")
    ]
    assert [line.split()[-1] for line in said] == [f"{s['speed']:.2f}" for s in speeds]
    assert speeds[0]["speed"] > 0


@pytest.mark.parametrize("extra", [["--png", "x.png"], ["--speed", "2"]])
def test_a_search_refuses_what_it_would_ignore(
    played: list[str], extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*played, "--capacity-at", "ttft_p99<10", *extra]) == 2
    assert f"{extra[0]} says nothing beside --capacity-at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--trace", "/nowhere/x_blk512.jsonl"], "--trace /nowhere/x_blk512.jsonl: no such file"),
        (["--trace", "/nowhere/decisions.jsonl"], "--trace /nowhere/decisions.jsonl: no such file"),
        (["--json", "/nowhere/rows.json"], "--json /nowhere/rows.json: no such folder"),
        (["--speed", "nan"], "--speed nan: must be above 0"),
        (["--block-seconds", "-1"], "--block-seconds -1.0: must be above 0"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--link", "-1"], "--link -1.0: must be at least 0"),
        (["--loss", "2"], "--loss 2.0: must be a share, from 0 to 1"),
        (["--policy", "cheapest,best"], "--policy 'best': expected all, or some of cheapest, "),
        (["--capacity-at", "ttft<1"], "--capacity-at 'ttft<1': expected COLUMN<NUMBER"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_named_at_once(
    played: list[str], extra: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*played, *extra]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""
