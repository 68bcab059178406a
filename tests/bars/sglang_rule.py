"""``python -m tests.bars.sglang_rule``: where sglang-router itself sends what no worker holds, so that
``sglang_threshold`` can be held to it. Four servers, which hold on to a prompt while they are told to.

Who goes by the size of a tree does not send every long prompt to the same idle one.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.bars.peers import sglang
from tests.bars.programs import Starter, programs

SERVERS, IDLE = 4, 16
SHORT, LONG = 20, 4000  # words of a prompt
_ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
_INFO = {
    "model_path": "m",
    "served_model_name": "m",
    "object": "list",
    "data": [{"id": "m", "object": "model"}],
}


class Bench:
    """Counts who is asked."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[int] = asyncio.Queue()
        self.going = asyncio.Event()
        self.going.set()
        self._numbers = count(1)

    def server(self, number: int) -> TestServer:
        async def complete(request: web.Request) -> web.Response:
            await request.read()
            self.asked.put_nowait(number)
            await self.going.wait()
            return web.json_response(_ANSWER)

        async def tell(request: web.Request) -> web.Response:
            return web.json_response(_INFO)

        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/{any:.*}", tell)
        return TestServer(app)

    def prompt(self, words: int) -> dict[str, Any]:
        """Unlike all before."""
        content = f"{next(self._numbers)} " * words
        return {"model": "m", "messages": [{"role": "user", "content": content}]}


async def look(starter: Starter) -> None:
    bench = Bench()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(bench.server(n)) for n in range(SERVERS)]
        _, url = await asyncio.to_thread(sglang, starter, [str(s.make_url("")).rstrip("/") for s in servers])
        client = await stack.enter_async_context(ClientSession())
        going = await stack.enter_async_context(asyncio.TaskGroup())

        async def ask(words: int) -> None:
            async with client.post(f"{url}/v1/chat/completions", json=bench.prompt(words)) as answer:
                answer.raise_for_status()
                await answer.read()

        async def one(words: int) -> int:
            await ask(words)
            return await bench.asked.get()

        print("idle, one after another:", [await one(LONG) for _ in range(IDLE)])
        bench.going.clear()
        for words in [SHORT] * (SERVERS - 1) + [LONG]:
            going.create_task(ask(words))
            print(f"nobody has answered yet, {words} words more:", await bench.asked.get())
        bench.going.set()
        print("idle again:", [await one(LONG) for _ in range(IDLE)])


def main() -> None:
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # they are asked for gRPC too
    with programs() as starter:
        asyncio.run(look(starter))


if __name__ == "__main__":
    main()
