"""Token ids where template and tokenizer are not here: the server is asked by the page that knows them."""

import asyncio
from array import array
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from warmfleet_router.prompt.encoder import PromptEncoder
from warmfleet_router.servers import tokens
from warmfleet_router.servers.ask import parse
from warmfleet_router.servers.catalogue import Server
from warmfleet_router.servers.pool import ServerPool
from warmfleet_router.servers.tokens import Tokens

from tests.model import demo_model_path
from tests.process.gateways import load_once

MESSAGES = [{"role": "user", "content": "hi"}]
SERVER_IDS, RENDERED = [7, 8, 9], [10, 11]
asked: list[tuple[str, dict[str, Any]]] = []


async def tokenize(request: web.Request) -> web.Response:
    asked.append((request.path, await request.json()))
    return web.json_response({"count": 3, "max_model_len": 100, "tokens": SERVER_IDS})


async def render(request: web.Request) -> web.Response:
    asked.append((request.path, await request.json()))
    return web.json_response({"token_ids": RENDERED, "sampling_params": {"n": 1}, "features": None})


async def refuse(request: web.Request) -> web.Response:
    asked.append((request.path, await request.json()))
    return web.json_response({"message": "prompt: Field required"}, status=400)


async def ids(
    known: bool = False,
    chat: bool = True,
    silent: bool = False,
    engine: str = "vllm",
    page: Any = tokenize,
    **fields: Any,
) -> list[int]:
    """As the router takes them; ``known``: the model's tokenizer is here."""
    asked.clear()
    app = web.Application()
    app.add_routes([web.post("/tokenize", page), web.post("/v1/chat/completions/render", render)])
    loaded = load_once(demo_model_path())
    encoders = {"m": PromptEncoder(loaded)} if known else {}
    pool = ServerPool()
    async with TestServer(app) as server:
        servers = [Server(str(server.make_url("")), engine, silent, "m")]
        prompt = {"messages": MESSAGES} if chat else {"prompt": "hi"}
        body = web.json_response({"model": "m", "temperature": 0.5, **prompt, **fields}).body
        assert isinstance(body, bytes)
        packed = await Tokens(encoders, pool).of(parse(body, chat), b"", servers)
        await pool.close()
    return list(array("I", packed))


@pytest.mark.parametrize("kwargs", [{}, {"tools": [{"type": "function"}]}, {"chat_template": "x"}])
async def test_a_chat_is_asked_about(kwargs: dict[str, Any]) -> None:
    assert await ids(**kwargs) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "messages": MESSAGES, **kwargs})]


@pytest.mark.parametrize("kwargs", [{"documents": [{"text": "x"}]}, {"reasoning_effort": "low"}])
async def test_what_tokenize_does_not_know_is_rendered(kwargs: dict[str, Any]) -> None:
    assert await ids(**kwargs) == RENDERED
    fields = {"model": "m", "temperature": 0.5, "messages": MESSAGES, **kwargs}
    assert asked == [("/v1/chat/completions/render", fields)]


async def test_a_completion_is_asked_about() -> None:
    assert await ids(chat=False, add_special_tokens=False) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "prompt": "hi", "add_special_tokens": False})]


async def test_nobody_is_asked_where_ids_are_known_or_of_no_use() -> None:
    assert await ids(known=True)
    assert await ids(chat=False, prompt=[1, 2]) == [1, 2]
    assert not await ids(silent=True)
    assert not asked


@pytest.mark.parametrize("known", [False, True])
async def test_nobody_is_asked_for_ids_that_do_not_say_which_image_it_is(known: bool) -> None:
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/cat.png"}}]}
    for template in ({}, {"chat_template": "x"}):
        assert not await ids(known, messages=[*MESSAGES, shown], **template)
    assert not await ids(known, truncate_prompt_tokens=1, chat_template="x")
    assert not await ids(known, chat=False, prompt=[1, 2], prompt_embeds="x")
    assert not asked


@pytest.mark.parametrize(
    "kwargs", [{"chat_template": "x"}, {"continue_final_message": True}, {"add_special_tokens": True}]
)
async def test_a_prompt_that_our_template_would_make_otherwise_is_asked_about(kwargs: dict[str, Any]) -> None:
    assert await ids(known=True, **kwargs) == SERVER_IDS


async def test_sglang_is_asked_for_what_it_can_tell() -> None:
    assert await ids(engine="sglang") == SERVER_IDS
    assert await ids(engine="sglang", chat=False) == SERVER_IDS
    assert not await ids(engine="sglang", documents=[{"text": "x"}])
    assert not asked


async def test_one_that_hangs_is_not_waited_for_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    go_on, pool = asyncio.Event(), ServerPool()

    async def hang(request: web.Request) -> web.Response:
        await go_on.wait()
        return await tokenize(request)

    first, second = web.Application(), web.Application()
    first.add_routes([web.post("/tokenize", hang)])
    second.add_routes([web.post("/tokenize", tokenize)])
    body = web.json_response({"model": "m", "messages": MESSAGES}).body
    assert isinstance(body, bytes)
    async with TestServer(first) as one, TestServer(second) as other:
        servers = [Server(str(each.make_url("")), "vllm", False, "m") for each in (one, other)]
        made = Tokens({}, pool)

        async def told(*by: Server) -> list[int]:
            return list(array("I", await made.of(parse(body, True), b"", list(by))))

        monkeypatch.setattr(tokens, "ASK_S", 0.01)
        assert not await told(*servers)
        monkeypatch.setattr(tokens, "ASK_S", 60.0)
        assert await told(*servers) == SERVER_IDS, "the other one is asked"
        assert not await told(servers[0])
        go_on.set()
        monkeypatch.setattr(made, "_resting", {})  # it has had its rest
        assert await told(servers[0]) == SERVER_IDS
        await pool.close()


async def test_who_tells_no_ids_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """As SGLang of before 2026 does of a chat. Its events would be of no use, and nobody would know why."""
    assert not await ids(engine="sglang", page=refuse)
    assert [path for path, _ in asked] == ["/tokenize"]
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "token ids not told"]  # type: ignore[attr-defined]
    assert "set tokenizers.m" in line["why"]
