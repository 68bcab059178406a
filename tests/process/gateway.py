"""A gateway as small as it can be: one Serve stream, and what has arrived on it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.channel import connect
from warmfleet_proto.hashing import root_hash
from warmfleet_proto.worker_pb2_grpc import WorkerStub
from warmfleet_worker.engine.base import Sampling
from warmfleet_worker.engine.sim import oracle
from warmfleet_worker.worker import Worker

ENDLESS = 50_000  # tokens of a request that a test ends


def packed(token_ids: Sequence[int]) -> bytes:
    return np.array(token_ids, np.uint32).tobytes()


def expected(
    worker: Worker, prompt: Sequence[int], count: int, *, salt: bytes = b"", choice: int = 0, **sampling: Any
) -> list[int]:
    """What the oracle says that the worker must answer."""
    engine = worker.runner.engine
    root = root_hash(engine.fingerprint, engine.block_size, salt=salt)
    return oracle(
        root, prompt, count, sampling=Sampling(**sampling), choice=choice, vocab_size=engine.vocab_size
    )


class Stream:
    """Checks as it reads: positions without gaps, nothing after an ending, one message a step."""

    patience_s = 60.0

    def __init__(self, stub: Any, gateway: str, reattach: dict[int, list[int]]) -> None:
        self.tokens: dict[tuple[int, int], list[int]] = {
            (handle, choice): [-1] * position
            for handle, positions in reattach.items()
            for choice, position in enumerate(positions)
        }
        self.logprobs: dict[tuple[int, int], list[pb.TokenLogprobs]] = {}
        self.endings: dict[tuple[int, int], pb.Ending] = {}
        self.started: dict[int, pb.Started] = {}
        self.prompt_logprobs: dict[int, list[pb.TokenLogprobs]] = {}
        self.messages = 0
        self.changed = asyncio.Condition()
        self.call = stub.Serve()
        listed = [pb.Reattach(handle=h, next_positions=p) for h, p in reattach.items()]
        self._opening = pb.Open(gateway_id=gateway, reattach=listed)
        self.reader: asyncio.Task[None]

    async def open(self) -> None:
        await self.send(open=self._opening)
        self.reader = asyncio.create_task(self._read())

    async def send(self, **body: Any) -> None:
        await self.call.write(pb.ServeRequest(**body))

    async def submit(
        self, handle: int, prompt: Sequence[int], max_tokens: int = 8, *, salt: bytes = b"", **rest: Any
    ) -> None:
        fields = {name: rest.pop(name) for name in ("booking", "deadline_s", "pull") if name in rest}
        await self.send(
            submit=pb.Submit(
                handle=handle,
                prompt_tokens=len(prompt),
                token_ids=packed(prompt),
                salt=salt,
                sampling=pb.Sampling(max_tokens=max_tokens, **rest),
                **fields,
            )
        )

    async def until(self, handle: int, tokens: int, choice: int = 0) -> list[int]:
        """The first tokens of a choice, once so many are there."""
        async with asyncio.timeout(self.patience_s), self.changed:
            await self.changed.wait_for(lambda: len(self.tokens.get((handle, choice), [])) >= tokens)
        return self.tokens[handle, choice][:tokens]

    async def end(self, handle: int, choice: int = 0) -> pb.Ending:
        async with asyncio.timeout(self.patience_s), self.changed:
            await self.changed.wait_for(lambda: (handle, choice) in self.endings)
        return self.endings[handle, choice]

    async def finish(self, handle: int, choice: int = 0) -> list[int]:
        await self.end(handle, choice)
        return self.tokens.get((handle, choice), [])

    async def close(self) -> None:
        self.call.cancel()
        self.reader.cancel()
        await asyncio.gather(self.reader, return_exceptions=True)

    async def _read(self) -> None:
        async for response in self.call:
            self.messages += 1
            for output in response.outputs:
                self._take(output)
            async with self.changed:
                self.changed.notify_all()

    def _take(self, output: pb.Output) -> None:
        key = (output.handle, output.choice)
        assert key not in self.endings
        tokens = self.tokens.setdefault(key, [])
        assert output.position == len(tokens)
        tokens += np.frombuffer(output.token_ids, "<u4").tolist()
        self.logprobs.setdefault(key, []).extend(output.logprobs)
        self.prompt_logprobs.setdefault(output.handle, []).extend(output.prompt_logprobs)
        if output.HasField("started"):
            assert output.handle not in self.started
            self.started[output.handle] = output.started
        if output.HasField("ending"):
            self.endings[key] = output.ending


@asynccontextmanager
async def stub_of(worker: Worker) -> AsyncIterator[Any]:
    async with connect(worker.grpc_address) as channel:
        yield WorkerStub(channel)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def stream(
    stub: Any, gateway: str = "gateway", reattach: dict[int, list[int]] | None = None
) -> AsyncIterator[Stream]:
    opened = Stream(stub, gateway, reattach or {})
    await opened.open()
    try:
        yield opened
        if opened.reader.done():
            opened.reader.result()
    finally:
        await opened.close()
