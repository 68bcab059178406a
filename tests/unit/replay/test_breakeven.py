"""Break-even against figures that were measured, and the shape of the answer."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_proto.settings import ConfigError
from warmfleet_router import breakeven, cli
from warmfleet_router.breakeven import Way, crossing, made_bytes_per_s, recompute_s
from warmfleet_router.replay.profile import Profile, flat, profile_of

H200 = profile_of("h200-llama-3-8b")


@pytest.mark.parametrize(("tokens", "per_s"), [(2048, 41_500), (8192, 38_400), (32_768, 27_100)])
def test_recomputing_takes_what_it_was_measured_to_take(tokens: int, per_s: float) -> None:
    assert tokens / recompute_s(H200, tokens) == pytest.approx(per_s, rel=0.03)


def test_an_h200_makes_kv_of_an_8b_model_at_four_to_five_gb_a_second() -> None:
    assert 4e9 < made_bytes_per_s(H200, 16_384) < 5e9
    assert 5e9 < made_bytes_per_s(H200, 8192) < 5.1e9
    assert 3.5e9 < made_bytes_per_s(H200, 32_768) < 4e9


def test_host_and_nvlink_win_whatever_the_length() -> None:
    """55 GB/s from pinned memory and 370 over NVLink: about 11 and 75 times what recomputing makes."""
    host, nvlink = Way("host", 55e9), Way("nvlink", 370e9)
    assert crossing(H200, host) == crossing(H200, nvlink) == 1
    assert host.seconds(H200, 8192) == pytest.approx(2**30 / 55e9)
    assert recompute_s(H200, 8192) / host.seconds(H200, 8192) == pytest.approx(11, rel=0.05)
    assert recompute_s(H200, 8192) / nvlink.seconds(H200, 8192) == pytest.approx(74, rel=0.05)


def test_a_link_below_four_gb_a_second_loses_until_prompts_are_long() -> None:
    assert crossing(H200, Way("peer", 1e9)) is None
    slow = crossing(H200, Way("peer", 3e9, 1e-3))
    assert slow is not None
    assert 32_768 < slow < 65_536


@given(st.floats(1e8, 1e12), st.floats(0, 1))
def test_the_crossing_is_where_one_becomes_the_other(bytes_per_s: float, latency_s: float) -> None:
    way = Way("peer", bytes_per_s, latency_s)
    found = crossing(H200, way)
    if found is None:
        assert way.seconds(H200, 131_072) >= recompute_s(H200, 131_072)
    else:
        assert way.seconds(H200, found) < recompute_s(H200, found)
        assert found == 1 or way.seconds(H200, found - 1) >= recompute_s(H200, found - 1)


def test_chunks_cost_a_base_each() -> None:
    profile = Profile(prefill_base=1.0, prefill_token=0.001, chunk_tokens=100)
    assert recompute_s(profile, 250) == pytest.approx(3 + 0.25)
    assert recompute_s(flat(0.5, 16), 32) == pytest.approx(1.0)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", "llama-3-8b", "--gpu", "h200", "--link", "12.5GB/s", "--latency-ms", "20"]
    assert cli.main(["breakeven", *asked]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert [row[0] for row in rows if row and row[0][0].isdigit()] == [f"{1 << i}k" for i in range(8)]
    assert "host at 55 GB/s: loading is quicker, however short" in said
    assert "peer at 12.5 GB/s: loading is quicker from" in said


def test_a_fitted_profile_may_know_no_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of workers that have brought nothing from anywhere: the example of --help."""
    file = tmp_path / "my-gpu.toml"
    file.write_text('name = "mine"\nprefill_token = 1e-4\nkv_bytes_per_token = 131072\n')
    assert cli.main(["breakeven", "--engine", str(file), "--link", "10Gb/s", "--latency-ms", "5"]) == 0
    said = capsys.readouterr().out
    assert "host at 55 GB/s (assumed): " in said
    assert "peer at 1.25 GB/s: " in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--latency-ms", "-1"], "--latency-ms -1: must be at least 0"),
        (["--peer", "127.0.0.1:1"], "--peer: is measured, so --measure"),
        (["--gpu", "abacus"], "abacus-llama-3-8b: no such file, and the profiles that are shipped are h200-"),
    ],
)
def test_what_cannot_be_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["breakeven", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("12.5GB/s", 12.5e9), ("100Gb/s", 12.5e9), ("100 Gbit/s", 12.5e9), ("5B/s", 5.0)],
)
def test_rates(text: str, bytes_per_s: float) -> None:
    assert breakeven._rate("--link", text, 0.0) == bytes_per_s


@pytest.mark.parametrize("text", ["fast", "12.5", "0GB/s", "-1GB/s", "1e3GB/s", ""])
def test_what_is_no_rate_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--link"):
        breakeven._rate("--link", text, 1.0)


def test_a_profile_without_a_rate_asks_for_it() -> None:
    with pytest.raises(ConfigError, match="--host"):
        breakeven._rate("--host", None, 0.0)
    with pytest.raises(ConfigError):
        profile_of("h100-nothing")
