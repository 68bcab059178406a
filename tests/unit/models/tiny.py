"""Random models of two layers, made by transformers, which is also what they are compared with."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from warmfleet_kernels import Segment, Sequence, prepare
from warmfleet_worker.models.llama import Llama, pool_shape
from warmfleet_worker.models.load import load_model, open_source

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
BLOCK = 4


def make(kind: str = "Llama", **changes: Any) -> Any:
    """A transformers model of ``SIZES`` with weights large enough for its tokens to differ."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.eval()


def save(model: Any, folder: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def load(path: Path, dtype: torch.dtype = torch.float32) -> Llama:
    return load_model(open_source(str(path)), dtype, torch.device("cpu"), 1, lambda stage, done: None)


@torch.inference_mode()
def logits(llama: Llama, token_ids: list[int]) -> Tensor:
    """Logits of every position, the whole prompt as one chunk, in blocks that are out of order."""
    blocks = torch.arange(-(-len(token_ids) // BLOCK)).flip(0)
    pool = torch.full(pool_shape(llama.config, len(blocks), BLOCK), torch.nan, dtype=llama.dtype)
    batch = prepare([Sequence(0, len(token_ids), 0, (Segment(tuple(blocks.tolist())),))], pool)
    hidden = llama.forward(torch.tensor(token_ids), torch.arange(len(token_ids)), batch, pool)
    return llama.logits(hidden)


@torch.inference_mode()
def expected(model: Any, token_ids: list[int]) -> Tensor:
    out: Tensor = model(torch.tensor([token_ids])).logits[0]
    return out
