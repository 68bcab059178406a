"""What the command line and the configuration accept, and what they refuse."""

from pathlib import Path

import pytest
from warmfleet_proto import command
from warmfleet_worker import app


def main(arguments: list[str]) -> int:
    return command.main(app.command, "warmfleet-worker", arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "nonsense=1"], "nonsense"),
        (["--set", "sim.nonsense=1"], "nonsense"),
        (["--set", "block_size=0"], "block_size"),
        (["--set", "name=''"], "name"),
        (["--listen", "0.0.0.0:0"], "listen"),
        (["--http", "0.0.0.0:0"], "http"),
        (["--listen", "nowhere"], "nowhere"),
        (["--set", "transfer.transports=['cuda']"], "transfer.transports: cuda"),
        (["--set", "transfer.transports=['shm']", "--set", "transfer.bytes_per_s=1e6"], "bytes_per_s"),
        (["--set", "transfer.listen=127.0.0.1:0"], "transfer.listen"),
        (["--set", "disk_bytes=1000000"], "disk_path"),
        (["--set", "disk_path=/tmp/x"], "disk_bytes"),
        (["--set", "total_blocks=10", "--set", "memory_bytes=1000000"], "memory_bytes"),
        (["--set", "max_waiting=0"], "max_waiting"),
        (["--engine", "torch"], "model"),
        (["--engine", "magic"], "engine"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["--listen", "203.0.113.1:1", "--insecure"], "203.0.113.1:1"),
    ],
)
def test_bad_configuration_refuses_to_start(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engine", "sim", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--name", "w9", "--set", "sim.vocab_size=512", "--served-name", "tiny", "--print-config"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert 'name = "w9"' in printed
    assert 'served_name = "tiny"' in printed
    file = tmp_path / "worker.toml"
    file.write_text(printed)
    assert main(["--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_help_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    for word in ("--config", "--engine", "--listen", "--print-config", "SIGTERM", '"ready"', "examples"):
        assert word in page
