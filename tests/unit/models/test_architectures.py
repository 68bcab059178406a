"""Every supported architecture and scaling rule against transformers, on the same random weights."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.models.tiny import expected, load, logits, make, save

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied, heads not of hidden / heads": ("Llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "linear scaling": ("Llama", {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {}),
    "qwen 3": ("Qwen3", {}),
}
PROMPT = random.Random(0).choices(range(97), k=90)


@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_with_transformers(name: str, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    model = make(kind, **changes)
    llama = load(save(model, tmp_path))
    wanted = expected(model, PROMPT)
    assert wanted.std() > 0.5
    assert (logits(llama, PROMPT) - wanted).abs().max() < 1e-4


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = make()
    llama = load(save(model, tmp_path, shard="10KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (logits(llama, PROMPT) - expected(model, PROMPT)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make()
    error = logits(load(save(model, tmp_path), dtype), PROMPT) - expected(model, PROMPT)
    assert 1e-4 < error.abs().mean() < 0.1
