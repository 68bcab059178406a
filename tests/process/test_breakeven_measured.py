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

from tests.process.exchange import FLEET_KEY, ONE_STEP, giving, pair
from tests.unit.transfer.certificates import authority, certificate

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


async def breakeven(*flags: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "warmfleet_router.cli", "breakeven", *flags]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rates(said: str) -> dict[str, str]:
    """Each way's, as its verdict has it."""
    verdicts = (line.partition(" at ") for line in said.splitlines() if "GB/s" in line and ": " in line)
    return {name: rest.partition(":")[0] for name, _, rest in verdicts if name in ("host", "disk", "peer")}


async def test_the_command_says_what_it_did_not_measure(tmp_path: Path) -> None:
    key = tmp_path / "fleet.key"
    key.write_text(FLEET_KEY.hex())
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nprefill_token = 1e-4\nhost_bytes_per_s = 9e9\n')
    async with pair(tmp_path, **FAST) as (a, b):
        of = ["--measure", b.worker.grpc_address]
        pulled = await breakeven(
            *of, "--peer", a.worker.grpc_address, "--fleet-key", str(key), "--host", "9GB/s"
        )
        alone = await breakeven(*of)
        fitted_once = await breakeven(*of, "--engine", str(file))
    assert pulled.startswith(f"b at {b.worker.grpc_address}, measured: seconds")
    assert rates(pulled) | {"peer": ""} == {"host": "9 GB/s", "disk": "7 GB/s (assumed)", "peer": ""}
    assert "(assumed)" not in rates(pulled)["peer"]
    assert rates(alone) == {
        way: f"{rate} GB/s (assumed)" for way, rate in (("host", 55), ("disk", 7), ("peer", 12.5))
    }
    assert rates(fitted_once) == rates(alone) | {"host": "9 GB/s"}
    heads, marks = alone.splitlines()[2:4]
    assert [
        heads[: end + 9].split()[-1] for end in range(len(marks)) if marks.startswith("(assumed)", end)
    ] == [
        "host",
        "disk",
        "peer",
    ]


async def test_workers_behind_tls_are_measured_with_the_routers_own_files(tmp_path: Path) -> None:
    tls = certificate(tmp_path, "worker", authority(tmp_path, "fleet"))
    wire = {"certificate": tls.certificate, "key": tls.key, "authority": tls.authority}
    config = tmp_path / "router.toml"
    config.write_text("".join([f"tls.{name} = '{path}'\n" for name, path in wire.items()]))
    key = tmp_path / "fleet.key"
    key.write_text(FLEET_KEY.hex())
    both = {"tls": wire, "chunk_tokens": ONE_STEP, **FAST}
    async with giving(tmp_path, "a", **both) as a, giving(tmp_path, "b", **both) as b:
        flags = ["--measure", b.grpc_address, "--peer", a.grpc_address, "--fleet-key", str(key)]
        assert "(assumed)" not in rates(await breakeven(*flags, "--config", str(config)))["peer"]
        sets = [part for name, path in wire.items() for part in ("--set", f"tls.{name}={path}")]
        assert rates(await breakeven("--measure", b.grpc_address, *sets))["peer"] == "12.5 GB/s (assumed)"


async def test_nobody_there() -> None:
    with pytest.raises(ConfigError, match="--measure"):
        await measure("127.0.0.1:1", "", None)


def test_a_peer_gives_nothing_without_a_grant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["breakeven", "--measure", "127.0.0.1:1", "--peer", "127.0.0.1:2"]) == 2
    assert "--fleet-key" in capsys.readouterr().err
