"""``warmfleet router`` and ``warmfleet gateway`` as programs: options, ready lines, refusals, signals."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from warmfleet_proto.settings import load
from warmfleet_router.config import GatewayConfig, RouterConfig

from tests.process.programs import ANY, Processes, answers, processes, program, until


def warmfleet(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "warmfleet_router.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_print_config_can_be_read_back(tmp_path: Path) -> None:
    options = ("--http", ANY, "--set", "routing.policy=two_choices", "--set", 'workers=["127.0.0.1:1"]')
    done = warmfleet("router", *options, "--print-config")
    file = tmp_path / "router.toml"
    file.write_text(done.stdout)
    config = load(RouterConfig, str(file))
    assert (config.http, config.routing.policy, config.workers) == (ANY, "two_choices", ["127.0.0.1:1"])
    done = warmfleet("gateway", "--router", "127.0.0.1:9", "--print-config")
    file.write_text(done.stdout)
    assert load(GatewayConfig, str(file)).router == "127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("router", "--http", "0.0.0.0:8000"), "http"),
        (("router", "--set", "no_such=1"), "no_such"),
        (("router", "--model", "/nowhere", "--http", ANY, "--listen", ANY), "/nowhere"),
        (("gateway", "--router", "nowhere"), "HOST:PORT"),
        (("router", "--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
def test_refusals_name_the_key_and_leave_no_traceback(arguments: tuple[str, ...], named: str) -> None:
    done = warmfleet(*arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with program(tmp_path, "router", http=ANY, listen=ANY) as first:
        taken = first.said["http"]
        done = warmfleet("router", "--http", taken, "--listen", ANY)
        assert done.returncode == 2
        assert taken in done.stderr


def test_a_router_whose_index_runs_in_python_says_so(tmp_path: Path) -> None:
    """As where no compiler was found. The page shows what /admin/workers says (``test_admin``)."""
    code = (
        "import sys; sys.modules['warmfleet_router._native'] = None; sys.argv[0] = 'warmfleet';"
        "from warmfleet_router.cli import main; sys.exit(main())"
    )
    log = tmp_path / "stderr"
    with log.open("w") as errors:
        command = [sys.executable, "-c", code, "router", "--http", ANY, "--listen", ANY]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        with urllib.request.urlopen(f"http://{said['http']}/admin/workers", timeout=60) as response:
            shown = json.loads(response.read())
        process.terminate()
    assert shown["fleet"]["index_native"] is False
    (line,) = [
        line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "index_in_python"
    ]
    assert (line["level"], "compiler" in line["why"]) == ("warning", True)


@pytest.fixture
def sims(tmp_path: Path) -> Iterator[Processes]:
    with processes(tmp_path, 1, timing__step_s=0.02) as running:
        yield running


def stream(sims: Processes, tokens: int, said: list[str]) -> threading.Thread:
    """Reads a stream in a thread, line by line into ``said``."""
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "sim", "stream": True, "max_tokens": tokens, "messages": messages}
    request = urllib.request.Request(
        f"{sims.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def read() -> None:
        cut_off = contextlib.suppress(OSError, http.client.HTTPException)
        with cut_off, urllib.request.urlopen(request, timeout=60) as response:
            said.extend(line.decode() for line in response)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def healthy(sims: Processes) -> bool:
    try:
        return answers(f"{sims.url}/health")
    except OSError:
        return False


def test_sigterm_lets_open_streams_end(sims: Processes) -> None:
    said: list[str] = []
    thread = stream(sims, 300, said)
    until(lambda: sims.admin()[0]["running"] == 1)
    sims.router.process.send_signal(signal.SIGTERM)
    assert sims.router.process.wait(60) == 0
    thread.join(60)
    assert "data: [DONE]\n" in said


def test_a_second_signal_ends_it_at_once(sims: Processes) -> None:
    thread = stream(sims, 2000, [])
    until(lambda: sims.admin()[0]["running"] == 1)
    sims.router.process.send_signal(signal.SIGTERM)
    until(lambda: not healthy(sims))  # it has heard the first
    assert sims.router.alive
    sims.router.process.send_signal(signal.SIGTERM)
    sims.router.process.wait(20)  # its own patience is 30 s
    thread.join(60)
