"""A fingerprint names the weights and the configuration, and is hashed once a file."""

import os
from pathlib import Path

import pytest
import torch
from warmfleet_worker.models import fingerprint as module
from warmfleet_worker.models.fingerprint import cache_dir, cached_digests, fingerprint
from warmfleet_worker.models.load import open_source

from tests.unit.models.tiny import make, save


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def of(path: Path) -> bytes:
    source = open_source(str(path))
    return fingerprint(source.config, source.digests())


def test_shards_do_not_matter_and_every_weight_does(tmp_path: Path) -> None:
    model = make()
    whole = of(save(model, tmp_path / "whole"))
    assert len(whole) == 32
    assert of(save(model, tmp_path / "shards", shard="10KB")) == whole
    with torch.no_grad():
        model.lm_head.weight[96, 31] += 1e-3
    assert of(save(model, tmp_path / "other")) != whole


def test_the_configuration_matters(tmp_path: Path) -> None:
    folder = save(make(), tmp_path / "model")
    before = of(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    assert of(folder) != before


def test_hashed_once_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    made: list[int] = []

    def compute() -> dict[str, str]:
        made.append(1)
        return {"tensor": f"{len(made)}"}

    assert [cached_digests(file, compute)["tensor"] for _ in range(3)] == ["1", "1", "1"]
    os.utime(file, ns=(1, 1))
    assert cached_digests(file, compute)["tensor"] == "2"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1))
    assert cached_digests(file, compute)["tensor"] == "3"
    for entry in cache_dir().iterdir():
        entry.write_bytes(b"{")
    assert cached_digests(file, compute)["tensor"] == "4"


def test_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.touch()
    monkeypatch.setattr(module, "cache_dir", lambda: file / "not a folder")
    assert cached_digests(file, lambda: {"a": "b"}) == {"a": "b"}
