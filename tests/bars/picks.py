"""Bar 6.2: what a pick costs the router's process, with 2 KB bodies whose text was tokenised before.

The picker is asked as Envoy asks it: a gRPC stream a request, headers and a buffered body, then the
headers of the response, then the end.
"""

import asyncio
import json
import random
import sys
import time

import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from warmfleet_router.local import demo

from tests.bars import pick_parts
from tests.bars.fleet import VOCAB_SIZE, base, get, start
from tests.bars.programs import LOGS, Program, programs
from tests.bars.rows import Row

WORKERS, AT_ONCE, WARM, PICKS, BODY_BYTES, TALKS = 2, 32, 1000, 5000, 2048, 50
MOST_MS, LEAST_PICKS = 0.6, 1500
MODEL = "tiny"


def main() -> list[Row]:
    with programs() as starter:
        settings = ["engine=sim", "sim.instant=true", f"sim.vocab_size={VOCAB_SIZE}", f"served_name={MODEL}"]
        names = [f"name=w{n}" for n in range(WORKERS)]
        workers = [
            start(starter, f"picks-w{n}", "warmfleet_worker", [names[n], *settings]) for n in range(WORKERS)
        ]
        urls = [base(worker.ready()["http"]) for worker in workers]
        config = LOGS / "picks-router.toml"
        backends = "\n".join(f'[[backends]]\nurl = "{url}"' for url in urls)
        config.write_text(f'[tokenizers]\n{MODEL} = "{demo.weights()}"\n{backends}\n')
        places = ["http=127.0.0.1:0", "listen=127.0.0.1:0", "picker=127.0.0.1:0"]
        flags = [part for place in places for part in ("--set", place)]
        command = [sys.executable, "-m", "warmfleet_router", "--config", str(config), *flags]
        router = starter.start("picks-router", command)
        said = router.ready()
        for _ in router.polls(30):
            if json.loads(get(f"{base(said['http'])}/admin/workers"))["fleet"]["healthy"] == WORKERS:
                break
        empty = starter.start("picks-empty", [sys.executable, "-m", "tests.bars.empty_picker"])
        asked = asyncio.run(rows(router, said["picker"], empty, empty.ready()["picker"]))
    return [*asked, *parts()]


async def rows(router: Program, picker: str, empty: Program, empty_picker: str) -> list[Row]:
    named, cpu_s, wall_s = await measured(router, picker)
    _, empty_s, _ = await measured(empty, empty_picker)
    each_ms, a_core, floor_ms = 1e3 * cpu_s / PICKS, PICKS / cpu_s, 1e3 * empty_s / PICKS
    return [
        Row("6.2", "picks that named an endpoint", f"{named} of {PICKS}", "all", named == PICKS),
        Row("6.2", "picker CPU a request", f"{each_ms:.2f} ms", f"<= {MOST_MS} ms", each_ms <= MOST_MS),
        Row("6.2", "beside it: a picker on grpc.aio that picks nothing", f"{floor_ms:.2f} ms"),
        Row("6.2", "picks a second of one core", f"{a_core:.0f}", f">= {LEAST_PICKS}", a_core >= LEAST_PICKS),
        Row("6.2", "picks a second as asked here, by one process", f"{PICKS / wall_s:.0f}"),
    ]


def parts() -> list[Row]:
    """What the picker itself does, in this process; asked among others its caches are colder than here."""
    ms = pick_parts.measure(MODEL, bodies())
    whole = sum(ms) - ms.protobuf
    said = {
        "a pick in process, without gRPC": whole,
        "reading and writing Envoy's messages": ms.protobuf,
        "reading the JSON body": ms.body,
        "template, special tokens, memo": ms.prompt,
        "placing it, its keys hashed": ms.route,
        "learning of its first token and its end": ms.reports,
        "headers, the pick, what was colder": ms.rest,
    }
    return [Row("6.2", f"in process: {what}", f"{figure:.3f} ms") for what, figure in said.items()]


async def measured(router: Program, picker: str) -> tuple[int, float, float]:
    """Picks that named an endpoint; CPU seconds of the process; seconds."""
    async with grpc.aio.insecure_channel(picker) as channel:
        stub = ExternalProcessorStub(channel)
        requests = bodies()
        for _ in range(20):
            if await pick(stub, requests[0]):
                break
            await asyncio.sleep(0.2)
        await many(stub, requests, WARM)
        cpu, began = router.cpu_s(), time.perf_counter()
        picked = await many(stub, requests, PICKS)
        return picked, router.cpu_s() - cpu, time.perf_counter() - began


def bodies() -> list[bytes]:
    """Chats of BODY_BYTES, each to be sent again and again."""
    chance, made = random.Random(5), []
    for _ in range(TALKS):
        text = " ".join(f"word{chance.randrange(1000)}" for _ in range(BODY_BYTES // 8))
        fields = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16}
        made.append(json.dumps(fields).encode())
    return made


async def many(stub: ExternalProcessorStub, requests: list[bytes], count: int) -> int:
    """AT_ONCE at a time; how many were given an endpoint."""
    numbers = iter(range(count))

    async def one_after_another() -> int:
        return sum([await pick(stub, requests[n % len(requests)]) for n in numbers])

    return sum(await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE))))


async def pick(stub: ExternalProcessorStub, body: bytes) -> bool:
    call = stub.Process()
    path = HeaderMap(headers=[HeaderValue(key=":path", raw_value=b"/v1/chat/completions")])
    status = HeaderMap(headers=[HeaderValue(key=":status", raw_value=b"200")])
    await call.write(ext.ProcessingRequest(request_headers=ext.HttpHeaders(headers=path)))
    await call.read()
    await call.write(ext.ProcessingRequest(request_body=ext.HttpBody(body=body, end_of_stream=True)))
    reply = await call.read()
    named = reply.WhichOneof("response") == "request_body"
    await call.write(ext.ProcessingRequest(response_headers=ext.HttpHeaders(headers=status)))
    await call.read()
    await call.done_writing()
    await call.read()
    return bool(named)
