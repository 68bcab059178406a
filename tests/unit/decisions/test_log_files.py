"""The files of a decision log: written in a thread, rotated, read back in order."""

from pathlib import Path

import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_router.decisions import writer
from warmfleet_router.decisions.lines import VERSION, Begin, Ticked, encode
from warmfleet_router.decisions.reader import is_log, read
from warmfleet_router.decisions.writer import Writer


def begin(part: int) -> bytes:
    return encode(Begin(VERSION, "run", part, "cheapest", {}, 1))


def test_the_newest_files_are_kept_and_read_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("of an earlier run\n")
    log = Writer(str(path), files=3)
    for part in range(4):
        assert log.write(begin(part), True)
        assert log.write(encode(Ticked([float(part)])), False)
    log.close()
    assert not log.write(b"late", False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "log.jsonl.1", "log.jsonl.2"]
    ticks = [line.t for line in read(str(path)) if isinstance(line, Ticked)]
    assert ticks == [[1.0], [2.0], [3.0]]
    assert is_log(str(path))


def test_a_slow_disk_costs_lines_never_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BACKLOG_BYTES", 100)
    log = Writer(str(tmp_path / "log.jsonl"), files=2)
    assert not log.write(b"x" * 101, True)
    assert log.write(b"x" * 100, True)
    log.close()


def test_a_path_that_cannot_be_written_ends_the_log_alone(tmp_path: Path) -> None:
    log = Writer(str(tmp_path / "missing" / "log.jsonl"), files=2)
    log.write(b"one", True)
    log._thread.join(5)
    assert not log.write(b"two", False)
    log.close()


def test_a_line_cut_short_is_left_out_and_nonsense_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(begin(0) + b"\n" + encode(Ticked([1.0]))[:-3])
    assert len(list(read(str(path)))) == 1
    path.write_bytes(begin(0) + b'\n{"k":"what"}\n')
    with pytest.raises(ConfigError, match=r"log.jsonl:2: not a line of a decision log"):
        list(read(str(path)))
    path.write_bytes(begin(0).replace(b'"version":1', b'"version":2') + b"\n")
    with pytest.raises(ConfigError, match="version 2"):
        list(read(str(path)))
    assert not is_log(str(tmp_path / "none"))
