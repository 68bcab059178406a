"""Break-even measured on running workers, whose engine takes known times over a throttled link."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warmfleet_proto.settings import ConfigError
from warmfleet_router import cli
from warmfleet_router.measure import fitted, link_of, measure

from tests.process.exchange import FLEET_KEY, pair

TOKEN_S, PAIR_S, BYTES_PER_S = 6e-4, 3e-7, 7e3
FAST: dict[str, Any] = {"total_blocks": 256, "transfer": {"transports": ["tcp"]}}
CONFIG: dict[str, Any] = {
    "sim": {"timing": {"prefill_token_s": TOKEN_S, "prefill_pair_s": PAIR_S, "step_s": 0.0}},
    "total_blocks": 256,
    "transfer": {"bytes_per_s": BYTES_PER_S, "transports": ["tcp"]},
}


def test_prefill_is_fitted_by_tokens_and_pairs() -> None:
    seen = [(n, TOKEN_S * n + PAIR_S * n * n / 2) for n in (256, 1024, 4096)]
    assert fitted(seen) == pytest.approx((TOKEN_S, PAIR_S))
    assert fitted([(256, 0.5)]) == pytest.approx((0.5 / 256, 0.0))


def test_a_link_goes_through_two_pulls() -> None:
    assert link_of((1e6, 0.11), (9e6, 0.19)) == pytest.approx((1e8, 0.1))
    assert link_of((1e6, 0.2), (9e6, 0.19)).bytes_per_s == pytest.approx(9e6 / 0.19), "noise"


async def test_what_it_measures_is_what_the_workers_take(tmp_path: Path) -> None:
    async with pair(tmp_path, **CONFIG) as (a, b):
        profile = await measure(b.worker.grpc_address, a.worker.grpc_address, FLEET_KEY)
        assert profile.kv_bytes_per_token == 8
        assert profile.chunk_s(1024, 0) == pytest.approx(TOKEN_S * 1024 + PAIR_S * 1024**2 / 2, rel=0.4)
        assert profile.link_bytes_per_s == pytest.approx(BYTES_PER_S, rel=0.5)
        assert not a.worker.exchange.leases.held()


async def test_the_command(tmp_path: Path) -> None:
    key = tmp_path / "fleet.key"
    key.write_text(FLEET_KEY.hex())
    async with pair(tmp_path, **FAST) as (a, b):
        flags = ["--measure", b.worker.grpc_address, "--peer", a.worker.grpc_address, "--fleet-key", str(key)]
        command = [sys.executable, "-m", "warmfleet_router.cli", "breakeven", *flags]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"b at {b.worker.grpc_address}, measured: seconds")
    assert "peer at" in done.stdout


async def test_nobody_there() -> None:
    with pytest.raises(ConfigError, match="--measure"):
        await measure("127.0.0.1:1", "", None)


def test_a_peer_gives_nothing_without_a_grant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["breakeven", "--measure", "127.0.0.1:1", "--peer", "127.0.0.1:2"]) == 2
    assert "--fleet-key" in capsys.readouterr().err
