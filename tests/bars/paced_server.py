"""An OpenAI server that computes nothing: every step of 20 ms gives each of its streams one token.

It does as little as it can, so that what stands before it is what is measured.
"""

import asyncio
import itertools
import json

import msgspec
import uvloop
from aiohttp import web

STEP_S = 0.02
MODEL = "paced"
_EVENT = (
    b'data: {"id":"chatcmpl-8d7e1b6f0c3a4f6e9b2d","object":"chat.completion.chunk","created":1764115200,'
    b'"model":"paced","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
_USAGE = (
    b'data: {"id":"chatcmpl-8d7e1b6f0c3a4f6e9b2d","object":"chat.completion.chunk","created":1764115200,'
    b'"model":"paced","choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
)


class Ask(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: dict[str, bool] | None = None


class Paced:
    """The first token of an answer comes at once, the others with the steps of all."""

    def __init__(self) -> None:
        self._step: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def steps(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in itertools.count(1):
            await asyncio.sleep(began + n * STEP_S - loop.time())
            done, self._step = self._step, loop.create_future()
            done.set_result(None)

    async def answer(self, http: web.Request) -> web.StreamResponse:
        ask = msgspec.json.decode(await http.read(), type=Ask)
        tokens = ask.max_completion_tokens or ask.max_tokens or 16
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        await response.write(_EVENT)
        for _ in range(tokens - 1):
            await self._step
            await response.write(_EVENT)
        if ask.stream_options and ask.stream_options.get("include_usage"):
            await response.write(_USAGE % (512, tokens, 512 + tokens))
        await response.write(b"data: [DONE]\n\n")
        return response


async def told(_: web.Request) -> web.Response:
    """Whatever a router asks a server when it joins."""
    model = {"id": MODEL, "object": "model", "max_model_len": 32768, "page_size": 16}
    info = {
        "model_path": MODEL,
        "served_model_name": MODEL,
        "is_generation": True,
        "dp_size": 1,
        "tp_size": 1,
    }
    return web.json_response({"object": "list", "data": [model]} | info)


async def serve() -> None:
    paced = Paced()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", paced.answer)
    for path in (
        "/v1/models",
        "/health",
        "/get_server_info",
        "/get_model_info",
        "/server_info",
        "/model_info",
    ):
        app.router.add_get(path, told)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    print(json.dumps({"ready": True, "http": f"{host}:{port}"}), flush=True)
    await paced.steps()


if __name__ == "__main__":
    uvloop.run(serve())
