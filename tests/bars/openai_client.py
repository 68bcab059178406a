"""Bar 4: the official ``openai`` client, unchanged, against the gateway. The tests hold the whole list."""

import openai

from tests.bars.fleet import sim_fleet
from tests.bars.rows import Row

MESSAGES = [{"role": "user", "content": "able acid area arms baby back band bank bars base"}]


def main() -> list[Row]:
    with (
        sim_fleet(2, instant=True) as fleet,
        openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none") as client,
    ):
        done = {
            "models": models(client) == fleet.model,
            "chat": chat(client, fleet.model),
            "stream with usage": stream(client, fleet.model),
            "completion": completion(client, fleet.model),
            "error": error(client, fleet.model),
        }
    failed = [what for what, ok in done.items() if not ok]
    return [
        Row("4", f"openai {openai.__version__}: {', '.join(done)}", f"failed: {failed}", "[]", not failed)
    ]


def models(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def chat(client: openai.OpenAI, model: str) -> bool:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8)  # type: ignore[arg-type]
    return bool(answer.choices[0].message.content) and answer.usage is not None


def stream(client: openai.OpenAI, model: str) -> bool:
    chunks = client.chat.completions.create(  # type: ignore[call-overload]
        model=model, messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    *answer, last = chunks
    return len(answer) > 1 and last.usage.completion_tokens == 8


def completion(client: openai.OpenAI, model: str) -> bool:
    answer = client.completions.create(model=model, prompt="able acid area", max_tokens=8)
    return answer.usage is not None and answer.usage.completion_tokens == 8


def error(client: openai.OpenAI, model: str) -> bool:
    try:
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=-1)  # type: ignore[arg-type]
    except openai.BadRequestError as refused:
        return refused.param == "max_tokens"
    return False
