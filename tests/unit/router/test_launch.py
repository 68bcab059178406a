"""What `warmfleet up` passes on."""

from itertools import pairwise
from pathlib import Path

import pytest
from warmfleet_proto.settings import ConfigError, load
from warmfleet_router.config import RouterConfig, check
from warmfleet_router.local.launch import Options, router_command


def test_keys_of_the_router_reach_it_and_win() -> None:
    sets = ["decision_log=x.jsonl", 'http="127.0.0.1:9"']
    options = Options(1, Path("m"), None, 8000, "auto", None, sets)
    command = router_command(options, ["a:1"], "k" * 64)
    given = [value for flag, value in pairwise(command) if flag == "--set"]
    config = load(RouterConfig, None, given)
    assert (config.decision_log, config.http, config.workers) == ("x.jsonl", "127.0.0.1:9", ["a:1"])


def test_a_decision_log_needs_its_folder(tmp_path: Path) -> None:
    check(RouterConfig(decision_log=str(tmp_path / "log.jsonl")))
    with pytest.raises(ConfigError, match=r"decision_log: .*missing is no folder"):
        check(RouterConfig(decision_log=str(tmp_path / "missing" / "log.jsonl")))
