"""A live fleet's decision log, replayed."""

import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from warmfleet_router.decisions import lines
from warmfleet_router.decisions.player import Player
from warmfleet_router.decisions.reader import read

from tests.model import demo_model_path
from tests.process.programs import ANY, answers, get, program, until, worker

SHARED = "You are a patient assistant who knows the harbour by heart. " * 20


def chat(url: str, number: int) -> None:
    words = random.Random(number % 7).choices(["tideways", "ropemaker", "seagulls", "mastheads"], k=200)
    body = {
        "model": "sim",
        "messages": [{"role": "system", "content": SHARED}, {"role": "user", "content": " ".join(words)}],
        "max_tokens": 4,
    }
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200


def test_a_live_log_replays_to_the_same_decisions(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    with ExitStack() as stack:
        started = [stack.enter_context(worker(tmp_path, f"w{n}", ANY, instant=True)) for n in range(3)]
        places = [each.said["grpc"] for each in started]
        settings = {"model": str(demo_model_path()), "workers": places, "decision_log": str(log)}
        router = stack.enter_context(program(tmp_path, "router", http=ANY, listen=ANY, **settings))
        url = f"http://{router.said['http']}"
        until(lambda: json.loads(get(f"{url}/admin/workers"))["fleet"]["healthy"] == 3)
        until(lambda: answers(f"{url}/health"))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: chat(url, n), range(60)))
        started[0].kill()
        until(lambda: json.loads(get(f"{url}/admin/workers"))["fleet"]["healthy"] == 2)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: chat(url, n), range(60)))
        metrics = get(f"{url}/metrics").decode()
        assert "warmfleet_router_decision_lines_dropped_total 0.0" in metrics
    player = Player()
    found = [judged for line in read(str(log)) if (judged := player.take(line))]
    assert len(found) >= 120
    assert [judged.differs for judged in found] == [""] * len(found)
    assert len({judged.line.worker for judged in found}) > 1
    assert any(judged.line.expected for judged in found)
    text = log.read_bytes()
    assert b"harbour" not in text
    assert b"seagulls" not in text
    ended = [line for line in read(str(log)) if isinstance(line, lines.Ended)]
    assert len(ended) == len(found)
