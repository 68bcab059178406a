"""A server that answers chats like OpenAI's, for clients under test: no model behind it."""

import asyncio
import json
from typing import Any

from aiohttp import web

PIECES = ("warm", " is", " good")
CONTEXT = 1200


class StandIn:
    """Remembers the bodies it was sent. A last message "fail" is a 503, "hang" is never answered,
    "break" ends its stream without [DONE]."""

    def __init__(self, gap_s: float = 0.01) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.gap_s = gap_s
        self.waits_for = 0  # bodies that must have come before any is answered

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/admin/workers", self.workers)
        return app

    async def models(self, _: web.Request) -> web.Response:
        model = {"id": "stand-in", "object": "model", "max_model_len": CONTEXT}
        return web.json_response({"object": "list", "data": [model]})

    async def workers(self, _: web.Request) -> web.Response:
        total = {"hit_tokens": 3, "asked_tokens": 4}
        return web.json_response({"fleet": {}, "workers": [{"worker": "w0", "hit_rate": {"total": total}}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        while len(self.bodies) < self.waits_for:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        last = body["messages"][-1]["content"]
        if last == "fail":
            return web.json_response({"error": {"message": "no workers"}}, status=503)
        if last == "hang":
            await asyncio.Event().wait()
        usage = self.usage(body)
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(PIECES)}}
            who = {"X-Warmfleet-Worker": "w0"}
            return web.json_response({"choices": [choice], "usage": usage}, headers=who)
        return await self.stream(request, usage, done=last != "break")

    async def stream(self, request: web.Request, usage: dict[str, Any], done: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in PIECES]
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": d}]} for d in deltas]
        chunks += [
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": usage},
        ]
        for chunk in chunks:
            await asyncio.sleep(self.gap_s)
            data = json.dumps(chunk, separators=(",", ":"))
            await response.write(f"data: {data}\n\n".encode())
        if done:
            await response.write(b"data: [DONE]\n\n")
        return response

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        words = sum(len(m["content"].split()) for m in body["messages"])
        seen = any(b["messages"][0] == body["messages"][0] for b in self.bodies[:-1])
        cached = len(body["messages"][0]["content"].split()) if seen else 0
        return {
            "prompt_tokens": words,
            "completion_tokens": len(PIECES),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
