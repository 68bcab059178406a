"""Token ids where template and tokenizer are not here: the server is asked by the page that knows them."""

import asyncio
import dataclasses
import json
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
SERVER_IDS = [7, 8, 9]
asked: list[tuple[str, dict[str, Any]]] = []


async def tokenize(request: web.Request) -> web.Response:
    asked.append((request.path, await request.json()))
    return web.json_response({"count": 3, "max_model_len": 100, "tokens": SERVER_IDS})


async def refuse(request: web.Request) -> web.Response:
    asked.append((request.path, await request.json()))
    return web.json_response({"message": "prompt: Field required"}, status=400)


async def ids(
    known: bool = False,
    chat: bool = True,
    silent: bool = False,
    engine: str = "vllm",
    page: Any = tokenize,
    context: int = 0,
    **fields: Any,
) -> list[int]:
    """As the router takes them; ``known``: the model's tokenizer is here."""
    asked.clear()
    app = web.Application()
    app.add_routes([web.post("/tokenize", page)])
    loaded = load_once(demo_model_path())
    encoders = {"m": PromptEncoder(loaded)} if known else {}
    pool = ServerPool()
    async with TestServer(app) as server:
        servers = [Server(str(server.make_url("")), engine, silent, "m")]
        prompt = {"messages": MESSAGES} if chat else {"prompt": "hi"}
        body = web.json_response({"model": "m", "temperature": 0.5, **prompt, **fields}).body
        assert isinstance(body, bytes)
        packed = await Tokens(encoders, pool).of(parse(body, chat), b"", servers, context)
        await pool.close()
    return list(array("I", packed))


@pytest.mark.parametrize("kwargs", [{}, {"tools": [{"type": "function"}]}, {"chat_template": "x"}])
async def test_a_chat_is_asked_about(kwargs: dict[str, Any]) -> None:
    assert await ids(**kwargs) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "messages": MESSAGES, **kwargs})]


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"documents": [{"text": "x"}]}, {"documents": [{"text": "x"}]}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"chat_template_kwargs": {"a": None, "b": 1}, "reasoning_effort": "none"},
         {"enable_thinking": False, "b": 1, "reasoning_effort": "none"}),
    ],
)  # fmt: skip
async def test_fields_that_the_page_does_not_know_are_variables_of_the_template(
    fields: dict[str, Any], variables: dict[str, Any]
) -> None:
    """vLLM has had a page that takes them as they are; since 0.32 it must be switched on."""
    assert await ids(**fields) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "messages": MESSAGES, "chat_template_kwargs": variables})]


async def test_what_an_engine_answered_may_be_sent_back_to_it_as_it_is() -> None:
    """vLLM 0.32: thoughts have two names, of which its page knows the newer one alone."""
    none = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    answer = {"role": "assistant", "content": "x", "tool_calls": [], **none}
    assert await ids(known=True, messages=[*MESSAGES, answer, *MESSAGES])
    assert not asked
    thought = {"role": "assistant", "content": "x", "reasoning_content": "so"}
    await ids(messages=[*MESSAGES, thought])
    assert asked[0][1]["messages"] == [*MESSAGES, thought | {"reasoning": "so"}]


async def test_a_completion_is_asked_about() -> None:
    assert await ids(chat=False, add_special_tokens=False) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "prompt": "hi", "add_special_tokens": False})]


async def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert await ids(chat=False, prompt=["hi"]) == SERVER_IDS
    assert asked == [("/tokenize", {"model": "m", "prompt": "hi"})]
    assert await ids(chat=False, prompt=[[1, 2]]) == [1, 2]
    assert await ids(known=True, chat=False, prompt=["hi"]) == await ids(known=True, chat=False, prompt="hi")
    assert not await ids(chat=False, prompt=["hi", "you"])
    assert not asked


async def test_nobody_is_asked_about_what_is_too_long_for_the_model() -> None:
    assert await ids(context=10, messages=[{"role": "user", "content": "x" * 100}]) == SERVER_IDS
    asked.clear()
    assert not await ids(context=10, messages=[{"role": "user", "content": "x" * 160}])
    assert not asked


async def test_what_is_not_understood_here_is_asked_about() -> None:
    message = MESSAGES[0] | {"task": "whatever comes next"}
    assert await ids(known=True, messages=[message]) == SERVER_IDS


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        b'"messages": [["reasoning_content"]]',
        b'"messages": [3, "reasoning_content"]',
        b'"messages": [{}], "reasoning_effort": 1e999',
        b'"messages": [{}], "reasoning_effort": "\xff"',
    ],
)
async def test_what_makes_no_sense_is_the_servers_to_refuse(fields: bytes, known: bool) -> None:
    encoders, pool = {"m": PromptEncoder(load_once(demo_model_path()))} if known else {}, ServerPool()
    server = Server("http://127.0.0.1:9", "vllm", False, "m")
    asked_of = parse(b'{"model": "m", %b}' % fields, True)
    assert await Tokens(encoders, pool).of(asked_of, b"", [server]) == b""
    await pool.close()


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
    "kwargs",
    [
        {"chat_template": "x"},
        {"continue_final_message": True},
        {"add_special_tokens": True},
        {"chat_template_kwargs": {"documents": [{"text": "x"}]}},
        {"messages": [{"role": "system", "content": "x-anthropic-billing-header: of one request\nYou"}]},
    ],
)
async def test_a_prompt_that_our_template_would_make_otherwise_is_asked_about(kwargs: dict[str, Any]) -> None:
    assert await ids(known=True, **kwargs) == SERVER_IDS


async def test_what_templates_print_as_it_is_looks_as_in_the_server() -> None:
    """vLLM 0.32: the order of a call's fields, and those of a function that were not given."""
    template = (
        "{{ tools | tojson }}{% for message in messages %}{{ message.tool_calls | tojson }}{% endfor %}"
    )
    loaded = load_once(demo_model_path())
    encoder = PromptEncoder(dataclasses.replace(loaded, chat_template=template))
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}
    fields = {
        "model": "m",
        "messages": [{"role": "assistant", "tool_calls": [call]}],
        "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
    }
    body = json.dumps(fields).encode()
    made, printed = Tokens({"m": encoder}, ServerPool()), {}
    for engine in ("vllm", "sglang"):
        packed = await made.of(parse(body, True), b"", [Server("http://x:1", engine, False, "m")])
        printed[engine] = loaded.fast.decode(list(array("I", packed)))
    assert printed["vllm"] == (
        '[{"type": "function", "function": '
        '{"name": "f", "description": null, "parameters": null, "strict": true}}]'
        '[{"id": "c", "function": {"arguments": {}, "name": "f"}, "type": "function"}]'
    )
    assert "null" not in printed["sglang"]


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


async def test_one_that_tells_others_is_not_let_rest_for_a_long_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked.clear()
    pool, begun = ServerPool(), asyncio.Event()

    async def hang_once(request: web.Request) -> web.Response:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return await tokenize(request)

    app = web.Application()
    app.add_routes([web.post("/tokenize", hang_once)])
    body = web.json_response({"model": "m", "messages": MESSAGES}).body
    assert isinstance(body, bytes)
    async with TestServer(app) as server:
        servers, made = [Server(str(server.make_url("")), "vllm", False, "m")], Tokens({}, pool)

        async def told() -> list[int]:
            return list(array("I", await made.of(parse(body, True), b"", servers)))

        monkeypatch.setattr(tokens, "ASK_S", 3.0)
        long = asyncio.create_task(told())
        await begun.wait()
        monkeypatch.setattr(tokens, "ASK_S", 60.0)
        assert await told() == SERVER_IDS
        assert not await long
        assert await told() == SERVER_IDS
        await pool.close()


async def test_all_servers_of_a_model_are_asked_in_turn() -> None:
    heard: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        heard.append(request.transport.get_extra_info("sockname")[1])
        return await tokenize(request)

    first, second = web.Application(), web.Application()
    for app in (first, second):
        app.add_routes([web.post("/tokenize", answer)])
    body = web.json_response({"model": "m", "messages": MESSAGES}).body
    assert isinstance(body, bytes)
    async with TestServer(first) as one, TestServer(second) as two:
        servers = [Server(str(server.make_url("")), "vllm", False, "m") for server in (one, two)]
        made = Tokens({}, pool := ServerPool())
        for _ in range(4):
            await made.of(parse(body, True), b"", servers)
        await pool.close()
    assert heard == [server.place.port for server in servers] * 2


async def test_who_tells_no_ids_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """As SGLang of before 2026 does of a chat. Its events would be of no use, and nobody would know why."""
    assert not await ids(engine="sglang", page=refuse)
    assert [path for path, _ in asked] == ["/tokenize"]
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "token ids not told"]  # type: ignore[attr-defined]
    assert "set tokenizers.m" in line["why"]
