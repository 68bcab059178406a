"""A model of the Llama-3-8B shape with random weights."""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor
from warmfleet_worker.engine.torch import TorchEngine
from warmfleet_worker.models.config import ModelConfig
from warmfleet_worker.models.llama import Layer, Llama, Weights

LLAMA_3_8B = ModelConfig(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14336,
    vocab_size=128256,
    max_context=131072,
    norm_eps=1e-5,
    rope_theta=500000.0,
)
_SPARE_BYTES = 6 << 30
TOKEN_BYTES = 2 * 2 * 32 * 8 * 128  # of KV


def room(most: int, config: ModelConfig = LLAMA_3_8B) -> int:
    """Blocks of 16 tokens that fit beside the weights and what a step needs; ``most`` where they do."""
    spare = torch.cuda.mem_get_info()[0] - weight_bytes(config) - 2 * config.hidden * config.vocab_size
    return min(most, (spare - _SPARE_BYTES) // (16 * TOKEN_BYTES))


def pick(seed: int, total: int, count: int) -> Sequence[int]:
    """Random blocks, each once where there are so many: far apart, a second reading costs as much."""
    random = Random(seed)
    return random.sample(range(total), count) if count <= total else random.choices(range(total), k=count)


def engine(total_blocks: int, config: ModelConfig = LLAMA_3_8B, device: str = "cuda") -> TorchEngine:
    """With a pool of random numbers, as if every block had been computed."""
    llama = Llama(config, weights(config, device))
    made = TorchEngine(llama, model="random", fingerprint=bytes(32), block_size=16, total_blocks=total_blocks)
    for part in made.pool.split(1024):
        part.normal_()
    return made


def weight_bytes(config: ModelConfig = LLAMA_3_8B) -> int:
    """What a decode step reads: all but the embedding."""
    heads = (2 * config.heads + 2 * config.kv_heads) * config.head_dim
    layer = config.hidden * (heads + 3 * config.intermediate)
    return 2 * (config.layers * layer + config.hidden * config.vocab_size)


def weights(config: ModelConfig, device: str = "cuda") -> Weights:
    """The same on every device of a kind."""
    generator = torch.Generator(device).manual_seed(1)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16

    def matrix(rows: int, columns: int) -> Tensor:
        drawn = torch.randn((rows, columns), dtype=dtype, device=device, generator=generator)
        return drawn.mul_(columns**-0.5)

    def ones() -> Tensor:
        return torch.ones(config.hidden, dtype=dtype, device=device)

    wide = config.heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    layers = [
        Layer(
            attention_norm=ones(),
            qkv=matrix(wide + 2 * shared, config.hidden),
            qkv_bias=None,
            query_norm=None,
            key_norm=None,
            output=matrix(config.hidden, wide),
            mlp_norm=ones(),
            gate_up=matrix(2 * config.intermediate, config.hidden),
            down=matrix(config.hidden, config.intermediate),
        )
        for _ in range(config.layers)
    ]
    embedding = matrix(config.vocab_size, config.hidden)
    return Weights(embedding, tuple(layers), ones(), matrix(config.vocab_size, config.hidden))
