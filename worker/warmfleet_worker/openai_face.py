"""A small OpenAI API over one sim worker, so that other routers can be measured over the same workers.

It knows nothing of models. An answer that comes back in the next turn's messages has the ids that it had
when it was made.
"""

import asyncio
import itertools
from array import array

import msgspec
from aiohttp import web
from warmfleet_proto.errors import BadRequest, WarmfleetError, http_status
from warmfleet_proto.hashing import chain, root_hash

from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.openai_answer import Answer
from warmfleet_worker.openai_ask import Ask, token_ids
from warmfleet_worker.runner import Runner
from warmfleet_worker.sequence import Ending, Key, Output, Params, Reason, Request

_GATEWAY = ""  # no gateway can have this name
_MAX_TOKENS = 16  # OpenAI's default for completions

_decoder = msgspec.json.Decoder(Ask)


class OpenAiFace:
    def __init__(self, name: str, runner: Runner) -> None:
        self._name = name
        self._runner = runner
        self._handles = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[Output]] = {}
        runner.sinks[_GATEWAY] = self._deliver

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self._models),
            web.get("/get_model_info", self._info),
            web.get("/get_server_info", self._info),
            web.post("/flush_cache", self._flush),
            web.post("/v1/completions", self._answer),
            web.post("/v1/chat/completions", self._answer),
        ]

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "warmfleet"}
        return web.json_response({"object": "list", "data": [model]})

    async def _info(self, _: web.Request) -> web.Response:
        """What sglang-router asks a worker when it joins."""
        limits = self._runner.scheduler.limits
        return web.json_response(
            {
                "model_path": self._name,
                "served_model_name": self._name,
                "is_generation": True,
                "context_length": limits.max_context,
                "max_running_requests": limits.max_running,
                "page_size": limits.block_size,
                "tp_size": 1,
                "dp_size": 1,
            }
        )

    async def _flush(self, _: web.Request) -> web.Response:
        if not self._runner.forget():
            return _error(409, "requests are running")
        return web.Response()

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        try:
            ask = _decoder.decode(await http.read())
            request = self._request(ask)
            self._runner.submit(request)
        except msgspec.DecodeError as error:
            return _error(400, str(error))
        except WarmfleetError as error:
            return _error(http_status(error), str(error))
        outputs = self._waiting[request.key.handle] = asyncio.Queue()
        answer = Answer(self._name, request, chat=ask.messages is not None)
        try:
            if ask.stream:
                return await self._stream(http, ask, answer, outputs)
            async for _ in answer.chunks(outputs):
                pass
            return answer.whole()
        finally:
            self._runner.drop(request.key, Ending(Reason.CANCELLED))
            del self._waiting[request.key.handle]

    async def _stream(
        self, http: web.Request, ask: Ask, answer: Answer, outputs: asyncio.Queue[Output]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        async for chunk in answer.chunks(outputs):
            await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
        if ask.stream_options is not None and ask.stream_options.include_usage:
            usage = answer.envelope([]) | {"usage": answer.usage()}
            await response.write(b"data: " + msgspec.json.encode(usage) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _request(self, ask: Ask) -> Request:
        """Raises BadRequest."""
        engine = self._runner.engine
        prompt = array("I", token_ids(ask, engine.vocab_size)).tobytes()
        if not prompt:
            raise BadRequest("the prompt is empty", "prompt")
        root = root_hash(engine.fingerprint, engine.block_size, salt=ask.cache_salt.encode())
        asked = ask.max_completion_tokens if ask.max_tokens is None else ask.max_tokens
        params = Params(
            Sampling(temperature=ask.temperature, seed=ask.seed), _MAX_TOKENS if asked is None else asked
        )
        return Request(
            Key(_GATEWAY, next(self._handles)),
            "",
            root,
            prompt,
            chain(root, prompt, engine.block_size),
            params,
            submitted=self._runner.now(),
        )

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            if queue := self._waiting.get(output.request.key.handle):
                queue.put_nowait(output)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=status)
