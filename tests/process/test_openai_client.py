"""The official ``openai`` package and ``curl``, unchanged, against real processes."""

import json
import re
import subprocess
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.model import demo_model_path
from tests.process.programs import ANY, Processes, answers, get, processes, program, until

MESSAGES = [{"role": "user", "content": "What do rivers and bridges have in common?"}]

STEP_S = 0.004
RUNNING_NONE = re.compile(r"^warmfleet_worker_running 0\.0$", re.MULTILINE)


@pytest.fixture(scope="module")
def sims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("logs"), timing__step_s=STEP_S) as running:
        yield running


@pytest.fixture(scope="module", params=["embedded", "remote"])
def url(
    sims: Processes, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "embedded":
        yield sims.url
        return
    settings = {"http": ANY, "router": sims.router.said["grpc"], "model": str(demo_model_path())}
    with program(tmp_path_factory.mktemp("logs"), "gateway", **settings) as gateway:
        made = f"http://{gateway.said['http']}"
        until(lambda: answers(f"{made}/health"))
        yield made


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "sim"
    assert client.models.retrieve("sim") == model
    with pytest.raises(openai.NotFoundError, match="'some/other' is not served here; sim is"):
        client.models.retrieve("some/other")


def test_chat_and_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=6)  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    again = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=6)  # type: ignore[arg-type]
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_stream_with_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=9, seed=5)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="sim",
            messages=MESSAGES,
            max_tokens=9,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 9
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_choices_logprobs_and_stop(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sim",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=12,
        n=3,
        seed=1,
        logprobs=True,
        top_logprobs=2,
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) == 3
    first = answer.choices[0]
    assert first.logprobs is not None
    assert first.logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in first.logprobs.content] == [2] * 12
    text = first.message.content or ""
    assert b"".join(bytes(e.bytes or []) for e in first.logprobs.content).decode(errors="replace") == text
    stop = text[4:9]
    cut = client.chat.completions.create(
        model="sim",
        messages=MESSAGES,
        max_tokens=12,
        seed=1,
        stop=[stop],  # type: ignore[arg-type]
    )
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_completions(client: OpenAI) -> None:
    both = ["one", "two"]
    answer = client.completions.create(model="sim", prompt=both, max_tokens=4, echo=True, logprobs=1)
    assert [c.text[:3] for c in answer.choices] == both
    assert answer.choices[0].logprobs is not None
    ids = client.completions.create(model="sim", prompt=[1, 2, 3, 4], max_tokens=4)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 4
    chunks = client.completions.create(model="sim", prompt=[1, 2, 3, 4], max_tokens=4, stream=True)
    assert len([c for c in chunks if c.choices[0].text]) >= 1


def test_tools_are_rendered(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        model="sim", messages=MESSAGES, max_tokens=2, tools=[tool]
    )
    assert answer.usage.prompt_tokens > 0


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=-1)  # type: ignore[arg-type]
    assert bad.value.param == "max_tokens"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=MESSAGES)  # type: ignore[arg-type]
    assert unknown.value.param == "model"


def test_a_closed_stream_ends_the_work(client: OpenAI, sims: Processes) -> None:
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="sim", messages=MESSAGES, max_tokens=30_000, stream=True, n=4
    )
    next(iter(stream))
    stream.close()
    _idle(sims)


def test_a_timeout_of_the_client_ends_the_work(client: OpenAI, sims: Processes) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(
            model="sim",
            messages=MESSAGES,
            max_tokens=30_000,  # type: ignore[arg-type]
        )
    _idle(sims)


def _idle(sims: Processes) -> None:
    """No worker runs anything, long before 30,000 steps are over."""
    faces = [f"http://{worker.said['http']}/metrics" for worker in sims.workers]
    until(lambda: all(RUNNING_NONE.search(get(face).decode()) for face in faces), 30)


def _curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(url: str) -> None:
    body = {"model": "sim", "messages": MESSAGES, "max_tokens": 3}
    json_type = ("-H", "Content-Type: application/json")
    answer = json.loads(_curl(f"{url}/v1/chat/completions", *json_type, "-d", json.dumps(body)))
    assert answer["usage"]["completion_tokens"] == 3
    streamed = _curl(
        "-N", f"{url}/v1/chat/completions", *json_type, "-d", json.dumps(body | {"stream": True})
    )
    assert streamed.startswith("data: {")
    assert streamed.endswith("data: [DONE]\n\n")
    assert json.loads(_curl(f"{url}/nowhere"))["error"]["code"] == "not_found"
