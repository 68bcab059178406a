"""GGUF files written here the way llama.cpp writes them, against the model they were made from."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from torch import Tensor
from warmfleet_proto.settings import ConfigError
from warmfleet_worker.models.gguf_file import _LAYER_NAMES, _NAMES

from tests.unit.models.tiny import SIZES, expected, load, logits, make

PROMPT = random.Random(1).choices(range(97), k=50)
FIELDS: dict[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 10_000.0,
    "tokenizer.ggml.tokens": ["a", "b"],
}
MODEL: dict[str, Any] = {"intermediate_size": 64}


def interleave(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's conversion script: rows i and i + d/2 of a head become neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model: Any) -> dict[str, Tensor]:
    """The model's weights by their GGUF names."""
    found = {}
    for name, weight in model.state_dict().items():
        own = _NAMES.get(name)
        if own is None:
            _, _, layer, rest = name.split(".", 3)
            own = f"blk.{layer}.{_LAYER_NAMES[rest]}"
        if "attn_q" in own or "attn_k" in own:
            weight = interleave(
                weight, SIZES["num_attention_heads" if "attn_q" in own else "num_key_value_heads"]
            )
        found[own] = weight
    return found


def write(
    path: Path,
    weights: dict[str, Tensor],
    fields: dict[str, Any] = FIELDS,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> Path:
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        add = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, weight in weights.items():
        stored = kind if weight.dim() == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(weight.numpy().astype(np.float32), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "mean", "tied"),
    [
        (GGMLQuantizationType.F32, 1e-5, False),
        (GGMLQuantizationType.F32, 1e-5, True),
        (GGMLQuantizationType.F16, 0.01, False),
        (GGMLQuantizationType.Q8_0, 0.1, False),
        (GGMLQuantizationType.Q4_1, 1.0, False),
    ],
)
def test_logits_agree_with_the_model_it_holds(
    kind: GGMLQuantizationType, mean: float, tied: bool, tmp_path: Path
) -> None:
    model = make(**MODEL, tie_word_embeddings=tied)
    weights = tensors(model)
    if tied:
        del weights["output.weight"]
    llama = load(write(tmp_path / "tiny.gguf", weights, kind=kind))
    assert (logits(llama, PROMPT) - expected(model, PROMPT)).abs().mean() < mean


def test_rope_factors_are_a_tensor(tmp_path: Path) -> None:
    factors = torch.tensor([1.0, 1.0, 2.0, 8.0])
    model = make(**MODEL)
    model.model.rotary_emb.inv_freq /= factors
    llama = load(write(tmp_path / "tiny.gguf", tensors(model) | {"rope_freqs.weight": factors}))
    assert (logits(llama, PROMPT) - expected(model, PROMPT)).abs().max() < 1e-4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "gpt2"}, "architecture 'gpt2'"),
    ({"fields": FIELDS | {"llama.expert_count": 8}}, "llama.expert_count"),
    ({"fields": FIELDS | {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type 'yarn'"),
    ({"fields": FIELDS | {"llama.rope.dimension_count": 4}}, "llama.rope.dimension_count"),
    ({"fields": FIELDS | {"llama.block_count": 0}}, "llama.block_count is 0"),
    ({"fields": FIELDS | {"llama.context_length": "long"}}, "llama.context_length is 'long'"),
    ({"fields": {}}, "llama.attention.head_count is missing"),
    ({"fields": FIELDS | {"llama.block_count": 3}}, "blk.2.attn_norm.weight is missing"),
    ({"fields": FIELDS | {"llama.feed_forward_length": 96}}, r"gate_proj.weight has shape \[64, 32\]"),
    ({"weights": {"output_norm.weight": torch.ones(32)}}, "token_embd.weight is missing"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", **{"weights": tensors(make(**MODEL))} | change)
    with pytest.raises(ConfigError, match=named):
        load(path)


@pytest.mark.parametrize("size", [0, 3, 30, 5_000, 20_000])
def test_damaged_files(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", tensors(make(**MODEL)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=r"tiny\.gguf"):
        load(path)
    with pytest.raises(ConfigError, match="absent"):
        load(tmp_path / "absent.gguf")
