"""Everything at once on tiers far too small: cancels, deadlines, shared prefixes, blocks spoilt and a
disk that fails now and then. Texts stay the oracle's and every account adds up."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto import worker_pb2 as pb

from tests.process.fleet import sim_worker
from tests.process.gateway import Stream, expected, stream, stub_of
from tests.process.test_tiers import HOST, below, check_presence, settled

ASKED = 250
EVERY = 10


def tokens(rng: random.Random) -> list[int]:
    """One of a few families; members share fronts of any length."""
    family, length = rng.randrange(6), rng.randrange(1, 300)
    return [family * 1000 + i for i in range(length)] + [rng.randrange(5) for _ in range(rng.randrange(3))]


class FlakyDisk:
    """One call in ``EVERY`` fails: by number, since a slow machine makes few calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = self._calls = 0
        for name in ("preadv", "pwritev"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, call: Any) -> Any:
        def flaky(*arguments: Any) -> Any:
            self._calls += 1
            if self._calls % EVERY == 0:
                self.failures += 1
                raise OSError(5, "Input/output error")
            return call(*arguments)

        return flaky


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_chaos(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    flaky = FlakyDisk(monkeypatch)
    timing = {"prefill_token_s": 0.00005, "prefill_pair_s": 0.0, "step_s": 0.0005}
    settings = HOST | {
        "sim": {"timing": timing}, "max_running": 6, "chunk_tokens": 64, "total_blocks": 50,
        "host_bytes": 45 * 128,
        "disk_path": str(tmp_path), "disk_bytes": 1 << 21,
    }  # fmt: skip
    async with sim_worker(**settings) as worker, stub_of(worker) as stub, stream(stub) as gateway:
        gateway.patience_s = 50
        asked = {}
        for handle in range(1, ASKED + 1):
            asked[handle] = tokens(rng)
            deadline_s = rng.choice([0.0, 0.0, 0.0, 0.05])
            await gateway.submit(handle, asked[handle], rng.randrange(1, 20), deadline_s=deadline_s)
            if rng.random() < 0.15:
                await gateway.send(cancel=pb.Cancel(handle=rng.randrange(1, handle + 1)))
            if rng.random() < 0.1:
                spoil(worker, rng)
            if handle % 10 == 0:
                await gateway.end(handle)
                worker.scheduler.fetching.pace._rests.clear()
        for handle, prompt in asked.items():
            await check(gateway, worker, handle, prompt)
        await settled(worker)
        check_presence(worker)
        totals = worker.scheduler.fetching.totals
        assert sum(totals.arrived.values()) > 0
        assert not worker.runner._carried
        assert flaky.failures > 0


def spoil(worker: Any, rng: random.Random) -> None:
    nodes = list(below(worker).host.cache._nodes.values())
    if nodes:
        node = rng.choice(nodes)
        below(worker)._memory[node.block * 128 + rng.randrange(128)] ^= 1


async def check(gateway: Stream, worker: Any, handle: int, prompt: list[int]) -> None:
    found = await gateway.finish(handle)
    assert found == expected(worker, prompt, len(found))
    reason = gateway.endings[handle, 0].reason
    assert reason in (pb.Ending.LENGTH, pb.Ending.CANCELLED, pb.Ending.DEADLINE)
