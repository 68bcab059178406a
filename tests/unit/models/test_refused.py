"""What cannot be served refuses to load, and the message says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from warmfleet_proto.settings import ConfigError

from tests.unit.models.tiny import load, make, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make(), tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"model_type": None}, "model_type"),
    ({"hidden_size": "32"}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"num_key_value_heads": 3}, "3 KV heads"),
    ({"head_dim": 7}, "head size 7"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"model_type": "mistral", "sliding_window": 64}, "sliding_window 64"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "two"),
    ({"intermediate_size": 40}, r"gate_proj.weight has shape \[48, 32\], expected \[40, 32\]"),
    ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
]


@pytest.mark.parametrize(("change", "named"), CONFIGS)
def test_configuration(folder: Path, change: dict[str, Any], named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=named):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x00 not what it says")
    with pytest.raises(ConfigError, match=name):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: [Nn]o such file"):
        load(folder)


def test_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model-00002-of-00002\.safetensors: no such file"):
        load(folder)


def test_missing_tensor_and_dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{name} has dtype torch.int8"):
        load(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{name} is missing"):
        load(folder)


@pytest.mark.parametrize("name", ["nowhere", "model.bin"])
def test_neither_folder_nor_gguf(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(tmp_path / name)
