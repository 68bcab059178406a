"""The keys of grants: who gets which, and how they are read."""

from pathlib import Path

import pytest
from warmfleet_proto.grant import source_key
from warmfleet_proto.settings import ConfigError, read_key
from warmfleet_router import cli
from warmfleet_router.local.launch import write_keys


def test_a_fleet_key_is_new_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(2):
        assert cli.main(["key"]) == 0
        made.add(bytes.fromhex(capsys.readouterr().out.strip()))
    assert {len(key) for key in made} == {32}
    assert len(made) == 2


def test_a_workers_key_is_made_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet.key"
    fleet.write_text("ab" * 32 + "\n")
    assert cli.main(["key", "--fleet", str(fleet), "--worker", "w1"]) == 0
    worker = tmp_path / "w1.key"
    worker.write_text(capsys.readouterr().out)
    assert read_key("transfer.key_file", str(worker)) == source_key(b"\xab" * 32, "w1")


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "xy" * 32, "\xff" * 64])
def test_what_is_no_key_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.key"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"fleet_key_file: .*some\.key"):
        read_key("fleet_key_file", str(path))


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "--fleet", "/nowhere/fleet.key", "--worker", "w"]) == 2
    assert "/nowhere/fleet.key: No such file" in capsys.readouterr().err
    assert cli.main(["key", "--worker", "w"]) == 2
    assert "go together" in capsys.readouterr().err


def test_a_local_fleets_keys_are_its_users_alone(tmp_path: Path) -> None:
    paths = write_keys(tmp_path, ["a", "b"])
    fleet = read_key("fleet", str(paths[""]))
    assert read_key("a", str(paths["a"])) == source_key(fleet, "a")
    assert {path.stat().st_mode & 0o777 for path in paths.values()} == {0o600}
