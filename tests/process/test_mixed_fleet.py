"""Several models, several contexts and block sizes, our own workers and servers: under one gateway."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from warmfleet_router.core import RouterCore

from tests.process.fleet import sim_worker
from tests.process.gateways import SIM, healthy, one_tokenizer, router

__all__ = ["one_tokenizer"]


async def chat(base: str, model: str, text: str, **more: Any) -> tuple[int, str, dict[str, Any]]:
    """Status, worker, body."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base}/v1/chat/completions", json=body) as response,
    ):
        return response.status, response.headers.get("X-Warmfleet-Worker", ""), await response.json()


async def shown(base: str, path: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(base + path) as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def joined(base: str, count: int) -> None:
    async with asyncio.timeout(60):
        while (await shown(base, "/admin/workers"))["fleet"]["healthy"] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_prompts_too_long_for_some_workers_go_to_those_that_can() -> None:
    async with (
        sim_worker(name="small", total_blocks=16, sim=SIM) as small,
        sim_worker(name="large", total_blocks=256, block_size=32, sim=SIM) as large,
        router([small.grpc_address, large.grpc_address]) as addresses,
    ):
        base = f"http://{addresses['http']}"
        await healthy(base)
        await joined(base, 2)
        assert (await shown(base, "/v1/models"))["data"][0]["max_model_len"] == 256 * 32
        for number in range(6):
            status, worker, _ = await chat(base, "sim", f"{number} " + "word " * 600, max_tokens=4)
            assert (status, worker) == (200, "large")
            status, worker, _ = await chat(base, "sim", f"{number} short", max_tokens=2000)
            assert (status, worker) == (200, "large")
        _, _, answer = await chat(base, "sim", "short", ignore_eos=True)
        assert answer["usage"]["total_tokens"] == 16 * 16, "who names no length does not ask for the largest"
        status, _, answer = await chat(base, "sim", "word " * 9000, max_tokens=4)
        assert (status, answer["error"]["param"]) == (400, "messages")


async def test_an_alias_stands_for_two_models() -> None:
    aliases = {"any": {"one": 0.5, "two": 0.5}, "first": "one"}
    async with (
        sim_worker(name="w1", sim=SIM | {"model": "one"}) as one,
        sim_worker(name="w2", sim=SIM | {"model": "two"}) as two,
        router([one.grpc_address, two.grpc_address], aliases=aliases) as addresses,
    ):
        base = f"http://{addresses['http']}"
        await healthy(base)
        await joined(base, 2)
        models = {model["id"] for model in (await shown(base, "/v1/models"))["data"]}
        assert models == {"one", "two", "any", "first"}
        admin = await shown(base, "/admin/workers")
        assert admin["aliases"] == {"any": {"one": 0.5, "two": 0.5}, "first": {"one": 1.0}}
        answers = [await chat(base, "any", f"talk {n}", max_tokens=2) for n in range(16)]
        assert {(worker, answer["model"]) for _, worker, answer in answers} == {("w1", "one"), ("w2", "two")}
        again = [await chat(base, "any", f"talk {n}", max_tokens=2) for n in range(16)]
        assert [worker for _, worker, _ in again] == [worker for _, worker, _ in answers]
        assert (await chat(base, "first", "x", max_tokens=2))[1] == "w1"
        assert (await chat(base, "third", "x"))[0] == 404


@asynccontextmanager
async def side_by_side(kind: str = "openai", **settings: Any) -> AsyncIterator[str]:
    """One of our own workers and a server (another one's HTTP face) under one name; the gateway's URL."""
    slow = SIM | {"instant": False, "model": "tiny", "timing": {"prefill_token_s": 2e-3}}
    async with (
        sim_worker(name="own", sim=slow) as own,
        sim_worker(name="server", served_name="tiny", block_size=32, sim=slow) as server,
        router(
            [own.grpc_address],
            backends=[{"url": f"http://{server.http_address}", "kind": kind}],
            **settings,
        ) as addresses,
    ):
        base = f"http://{addresses['http']}"
        await healthy(base)
        await joined(base, 2)
        yield base


def is_own(worker: str) -> bool:
    return worker == "own"


async def test_our_own_worker_and_a_server_serve_one_model_side_by_side() -> None:
    async with side_by_side() as base:
        texts = [f"{n} " + "many words of a talk " * 40 for n in range(6)]
        answers = [await chat(base, "tiny", text, max_tokens=4) for text in texts]
        assert {status for status, _, _ in answers} == {200}
        assert all(answer["usage"]["completion_tokens"] == 4 for _, _, answer in answers)
        places = [is_own(worker) for _, worker, _ in answers]
        assert set(places) == {True, False}, "both have work"
        again = [await chat(base, "tiny", text, max_tokens=4) for text in texts]
        assert [is_own(worker) for _, worker, _ in again] == places, "each is found where it was before"
        cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, _, answer in again]
        assert min(cached) > 100
        fleet = (await shown(base, "/admin/workers"))["fleet"]
        assert fleet["bookings"] == 0


async def test_streams_of_either_kind_look_alike() -> None:
    async with side_by_side() as base, aiohttp.ClientSession() as session:
        texts = [f"{n} " + "many words of a talk " * 40 for n in range(16)]

        async def stream(text: str) -> tuple[str, bytes]:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 4}
            async with session.post(f"{base}/v1/chat/completions", json=body | {"stream": True}) as response:
                assert response.content_type == "text/event-stream"
                return response.headers["X-Warmfleet-Worker"], await response.read()

        streams = await asyncio.gather(*map(stream, texts))
        assert {is_own(worker) for worker, _ in streams} == {True, False}
        assert all(events.endswith(b"data: [DONE]\n\n") for _, events in streams)


async def test_a_client_that_leaves_leaves_no_booking_at_either_kind() -> None:
    async with side_by_side() as base, aiohttp.ClientSession() as session:

        async def left(number: int) -> str:
            text = f"{number} " + "many words of a talk " * 40
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "ignore_eos": True}
            async with session.post(f"{base}/v1/chat/completions", json=body | {"stream": True}) as response:
                await response.content.readline()
                return response.headers["X-Warmfleet-Worker"]

        assert set(map(is_own, await asyncio.gather(*map(left, range(16))))) == {True, False}
        async with asyncio.timeout(60):
            while (await shown(base, "/admin/workers"))["fleet"]["bookings"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_what_only_a_server_can_do_is_never_placed_on_our_own_worker() -> None:
    async with side_by_side() as base:
        for n in range(8):
            status, worker, _ = await chat(base, "tiny", f"{n}", max_tokens=2, guided_choice=["a", "b"])
            assert status == 200
            assert not is_own(worker)


def tenants_of(*names: str) -> list[dict[str, Any]]:
    """Whose keys are their names."""
    return [
        {"name": name, "salt": name, "key_sha256": [hashlib.sha256(name.encode()).hexdigest()]}
        for name in names
    ]


async def test_tenants_share_nothing_on_either_kind() -> None:
    async with (
        side_by_side("sglang", tenants=tenants_of("a", "b")) as base,
        aiohttp.ClientSession() as session,
    ):

        async def cached(text: str, key: str) -> int:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
            headers = {"Authorization": f"Bearer {key}"}
            async with session.post(f"{base}/v1/chat/completions", json=body, headers=headers) as response:
                answer = await response.json()
                return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

        texts = [f"{n} " + "many words of a talk " * 40 for n in range(6)]
        assert max([await cached(text, "a") for text in texts]) < 20
        assert min([await cached(text, "a") for text in texts]) > 100
        assert max([await cached(text, "b") for text in texts]) < 20


async def test_a_server_answers_where_our_own_workers_tokens_are_not_known() -> None:
    """Their vocabulary is another than that of the gateway's tokenizer."""
    small = {"instant": True, "model": "tiny", "vocab_size": 256}
    async with (
        sim_worker(name="own", sim=small) as own,
        sim_worker(name="server", served_name="tiny", sim=SIM) as server,
        router(
            [own.grpc_address], backends=[{"url": f"http://{server.http_address}", "kind": "openai"}]
        ) as addresses,
    ):
        base = f"http://{addresses['http']}"
        await joined(base, 2)
        status, worker, _ = await chat(base, "tiny", "hello", max_tokens=2)
        assert (status, is_own(worker)) == (200, False)


async def test_what_is_supposed_goes_where_what_was_made_went() -> None:
    """Of a model that servers have alone or beside our own workers; under the salt of a tenant."""
    async with (
        side_by_side("sglang", tenants=tenants_of("a")) as base,
        aiohttp.ClientSession(headers={"Authorization": "Bearer a"}) as session,
    ):
        for n in range(4):
            messages = [{"role": "user", "content": f"{n} " + "many words of a talk " * 40}]
            body = {"model": "tiny", "messages": messages, "max_tokens": 4}
            only_servers = {"guided_choice": ["a"]} if n % 2 else {}
            async with session.post(f"{base}/v1/chat/completions", json=body | only_servers) as response:
                made = response.headers["X-Warmfleet-Worker"]
                assert response.status == 200
            async with session.post(f"{base}/admin/explain?tenant=a", json=body | only_servers) as response:
                (supposed,) = (await response.json())["explanations"]
            assert supposed["worker"] == made
            assert supposed["expected_tokens"] > 100
            assert len(supposed["candidates"]) == (1 if only_servers else 2)


async def test_an_unforeseen_failure_does_not_end_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it all bookings would expire, and no worker that comes would be known."""
    listed, failures = RouterCore.list_workers, iter([ValueError("unforeseen")])

    def failing(core: RouterCore, *asked: Any) -> Any:
        for failure in failures:
            raise failure
        return listed(core, *asked)

    monkeypatch.setattr(RouterCore, "list_workers", failing)
    async with sim_worker(sim=SIM) as worker, router([worker.grpc_address]) as addresses:
        await healthy(f"http://{addresses['http']}")


def letters(folder: Path) -> str:
    """A model's folder whose tokenizer makes a token of every byte."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "config.json").write_text('{"eos_token_id": 0, "vocab_size": 320}')
    return str(folder)


async def test_each_of_our_own_models_has_its_own_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose tokenizer nobody has named is not read with another's; relayed ones are as before."""
    async with (
        sim_worker(name="w1", sim=SIM | {"model": "one"}) as one,
        sim_worker(name="w2", sim=SIM | {"model": "letters", "vocab_size": 320}) as two,
        sim_worker(name="w3", sim=SIM | {"model": "qwen", "vocab_size": 151_936}) as three,
        router(
            [worker.grpc_address for worker in (one, two, three)],
            tokenizers={"letters": letters(tmp_path)},
            aliases={"any": "letters"},
        ) as addresses,
    ):
        base = f"http://{addresses['http']}"
        await joined(base, 3)
        await healthy(base)
        for model in ("letters", "any"):
            status, worker, answer = await chat(base, model, "nineteen characters", max_tokens=2)
            assert (status, worker) == (200, "w2")
            assert answer["usage"] | {"prompt_tokens_details": None} == {
                "prompt_tokens": 19, "completion_tokens": 2, "total_tokens": 21, "prompt_tokens_details": None
            }  # fmt: skip
        status, worker, answer = await chat(base, "one", "nineteen characters", max_tokens=2)
        assert (status, worker) == (200, "w1")
        assert answer["usage"]["prompt_tokens"] > 19, "the demo's template says more"
        status, _, answer = await chat(base, "qwen", "hello")
        assert (status, answer["error"]["param"]) == (404, "model")
        assert "set tokenizers.qwen" in answer["error"]["message"]
        assert {model["id"] for model in (await shown(base, "/v1/models"))["data"]} == {
            "one",
            "letters",
            "any",
        }
    assert [r for r in caplog.records if "model refused" in r.getMessage()]
