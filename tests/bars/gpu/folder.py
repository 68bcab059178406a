"""A Hugging Face folder with random weights of a given shape, and a real tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from warmfleet_router.prompt.byte_level import from_gguf
from warmfleet_router.prompt.gguf_header import read_metadata

VOCABULARY = 49_152  # of the demo model's tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 16384,
        "rope_theta": 100000.0,
    },
}


def export_tokenizer(gguf: Path, folder: Path) -> None:
    """tokenizer.json and its configuration from a GGUF file."""
    metadata = read_metadata(gguf)
    folder.mkdir(parents=True, exist_ok=True)
    from_gguf(metadata).save(str(folder / "tokenizer.json"))
    tokens = metadata["tokenizer.ggml.tokens"]
    told = {
        "chat_template": metadata["tokenizer.chat_template"],
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def make(folder: Path, shape: str, tokenizer: Path, device: str) -> Path:
    """The folder; made unless it is there already."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    config = SHAPES[shape] | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    save_file(_weights(config, device), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _weights(config: dict[str, Any], device: str) -> dict[str, Tensor]:
    hidden, wide = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    shared, inner = config["num_key_value_heads"] * config["head_dim"], config["intermediate_size"]

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn((rows, columns), dtype=torch.bfloat16, device=device) * columns**-0.5).cpu()

    def ones() -> Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    made = {
        "model.embed_tokens.weight": matrix(VOCABULARY, hidden),
        "model.norm.weight": ones(),
        "lm_head.weight": matrix(VOCABULARY, hidden),
    }
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        made[f"{layer}input_layernorm.weight"] = ones()
        made[f"{layer}post_attention_layernorm.weight"] = ones()
        made[f"{layer}self_attn.q_proj.weight"] = matrix(wide, hidden)
        made[f"{layer}self_attn.k_proj.weight"] = matrix(shared, hidden)
        made[f"{layer}self_attn.v_proj.weight"] = matrix(shared, hidden)
        made[f"{layer}self_attn.o_proj.weight"] = matrix(hidden, wide)
        made[f"{layer}mlp.gate_proj.weight"] = matrix(inner, hidden)
        made[f"{layer}mlp.up_proj.weight"] = matrix(inner, hidden)
        made[f"{layer}mlp.down_proj.weight"] = matrix(hidden, inner)
    return made
