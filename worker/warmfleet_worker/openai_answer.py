"""Our own engines' answers in OpenAI's shapes."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web
from warmfleet_proto.limits import TOKEN_BYTES

from warmfleet_worker.sequence import Output, Reason, Request


class Answer:
    """One choice in the making, in OpenAI's shapes."""

    def __init__(self, model: str, request: Request, *, chat: bool) -> None:
        self._model = model
        self._request = request
        self._chat = chat
        self._created = int(time.time())
        self._words: list[str] = []
        self._finish = "length"

    async def chunks(self, outputs: asyncio.Queue[Output]) -> AsyncIterator[dict[str, Any]]:
        """One for each step that drew a token, and one with the finish reason."""
        ending = None
        while ending is None:
            output = await outputs.get()
            ending = output.ending
            for token_id in output.token_ids:
                word = f"w{token_id} "
                self._words.append(word)
                yield self.envelope([self._piece(word, None)])
        self._finish = {Reason.LENGTH: "length", Reason.STOP: "stop"}.get(ending.reason, "error")
        yield self.envelope([self._piece("", self._finish)])

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {
            "id": f"sim-{self._request.key.handle}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _piece(self, text: str, finish: str | None) -> dict[str, Any]:
        body = {"delta": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {"index": 0, **body, "finish_reason": finish}

    def whole(self) -> web.Response:
        text = "".join(self._words)
        body: dict[str, Any] = {"text": text}
        if self._chat:
            body = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **body, "finish_reason": self._finish}
        answer = self.envelope([choice]) | {"usage": self.usage()}
        answer["object"] = "chat.completion" if self._chat else "text_completion"
        return web.json_response(body=msgspec.json.encode(answer))

    def usage(self) -> dict[str, Any]:
        prompt, completion = len(self._request.prompt) // TOKEN_BYTES, len(self._words)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._request.cached_tokens},
        }
