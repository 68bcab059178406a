"""A pull over a slow link: its front is computed while the rest comes, over real sockets."""

from pathlib import Path
from typing import Any

import pytest
from warmfleet_worker.transfer import frames

from tests.process.exchange import pair, pull_of
from tests.process.far import far
from tests.process.gateway import expected
from tests.process.test_pull import at_rest, made_on

BLOCKS = 60
PROMPT = [*range(BLOCKS * 16), 7]
# A block takes 20 ms to compute, and about as long on the way.
BLOCK_S = 0.02
TIMING = {
    "step_s": 0.0,
    "prefill_token_s": BLOCK_S / 16,
    "prefill_pair_s": 0.0,
    "sequence_s": 0.0,
    "context_s": 0.0,
}
SLOW: dict[str, Any] = {
    "sim": {"timing": TIMING},
    "chunk_tokens": 64,
    "transfer": {"bytes_per_s": 128 / BLOCK_S, "streams": 1, "transports": ["tcp"]},
}


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "PIECE_BLOCKS", 2)


@pytest.mark.parametrize("queued", [False, True])
async def test_prefill_starts_before_the_last_slab(tmp_path: Path, queued: bool) -> None:
    async with pair(tmp_path, **SLOW) as (a, b):
        await made_on(a, PROMPT)
        await made_on(b, [9] * 200, 1)  # what computing takes is known
        if queued:
            await b.gateway.submit(2, list(range(5000, 5300)), 1)
        pull = pull_of(a.worker, PROMPT)
        pull.seconds = BLOCKS * BLOCK_S
        await b.gateway.submit(3, PROMPT, 5, pull=pull)
        assert await b.gateway.finish(3) == expected(b.worker, PROMPT, 5)
        started = b.gateway.started[3]
        assert started.pulled.failure == ""
        assert started.queue_s < started.pulled.seconds
        assert 0 < started.peer_tokens < BLOCKS * 16
        assert started.cached_tokens == started.peer_tokens
        await at_rest(a, b)


async def test_over_a_link_that_is_far_away(tmp_path: Path) -> None:
    async with pair(tmp_path, **SLOW) as (a, b):
        await made_on(a, PROMPT)
        await made_on(b, [9] * 200, 1)
        service = a.worker.exchange.service
        assert service is not None
        port = int(a.worker.grpc_address.rpartition(":")[2])
        async with far([port, service.offers[0].port], 0.02) as host:
            pull = pull_of(a.worker, PROMPT)
            pull.seconds, pull.address = BLOCKS * BLOCK_S, f"{host}:{port}"
            await b.gateway.submit(3, PROMPT, 5, pull=pull)
            assert await b.gateway.finish(3) == expected(b.worker, PROMPT, 5)
            started = b.gateway.started[3]
            assert started.pulled.failure == ""
            assert 0 < started.peer_tokens < BLOCKS * 16
            await at_rest(a, b)
