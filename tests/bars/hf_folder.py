"""The demo model as a Hugging Face folder, for engines that read nothing else."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from warmfleet_router.local import demo
from warmfleet_router.prompt import tokenizer
from warmfleet_worker.models.gguf_file import GgufFile

FOLDER = Path(__file__).parents[2] / ".run" / "models" / "smollm2-135m"
_LAYER = (
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def folder() -> Path:
    """Written once: weights in bf16, tokenizer and chat template."""
    done = FOLDER / "model.safetensors"
    if not done.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        source = GgufFile(demo.weights())
        _write("config.json", _config(source))
        _tokenizer()
        partial = FOLDER / "model.partial"
        save_file(_weights(source), partial, metadata={"format": "pt"})
        partial.rename(done)
    return FOLDER


def _weights(source: GgufFile) -> dict[str, torch.Tensor]:
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{n}.{part}.weight" for n in range(source.config.layers) for part in _LAYER]
    return {name: source.tensor(name).to(torch.bfloat16).contiguous() for name in names}


def _config(source: GgufFile) -> dict[str, Any]:
    config, ends = source.config, tokenizer.load(demo.weights()).eos_ids
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "torch_dtype": "bfloat16",
        "eos_token_id": ends[0],
    }


def _tokenizer() -> None:
    loaded = tokenizer.load(demo.weights())
    loaded.fast.encode_special_tokens = False
    loaded.fast.save(str(FOLDER / "tokenizer.json"))
    _write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": loaded.chat_template,
            "clean_up_tokenization_spaces": False,
            **loaded.variables,
        },
    )


def _write(name: str, value: dict[str, Any]) -> None:
    (FOLDER / name).write_text(json.dumps(value, indent=1))
