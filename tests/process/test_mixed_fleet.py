"""Several models, several contexts and block sizes, under one gateway."""

import asyncio
from typing import Any

import aiohttp

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
    async with asyncio.timeout(10):
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
