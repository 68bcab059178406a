"""The Llama family over a paged KV pool: Llama, SmolLM, Mistral, and Qwen 2 and 3 by two small switches.

Knows nothing of requests, sampling or files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, rms_norm
from warmfleet_kernels import (
    Batch,
    Rotation,
    add_rms_norm,
    attention,
    project,
    project_onto,
    rotate_write,
    silu_mul,
)

from warmfleet_worker.models.config import ModelConfig
from warmfleet_worker.models.rope import Rope


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, [out, in], packed where ``project`` wants that; projections that read the same
    input are one matrix."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model, of one dtype and on one device."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor


class Llama:
    """A model that computes; it keeps no state between calls but its weights."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self.rope = Rope(config.rope_theta, config.head_dim, config.rope_factors, self.device)
        self._weights = weights

    def forward(self, token_ids: Tensor, homes: Tensor, batch: Batch, pool: Tensor) -> Tensor:
        """Write the batch's KV into the pool; return the normed last hidden states ``[rows, hidden]``.

        ``token_ids`` and ``homes`` (the position that each row's query and key are rotated at): ``[rows]``.
        """
        hidden = embedding(token_ids, self._weights.embedding)
        rotation = self.rope.at(homes)
        update = None
        for index, layer in enumerate(self._weights.layers):
            hidden, normed = self._add_norm(hidden, update, layer.attention_norm)
            attended = self._attend(layer, index, normed, rotation, batch, pool)
            hidden, update = project_onto(hidden, attended, layer.output)
            hidden, normed = self._add_norm(hidden, update, layer.mlp_norm)
            gated = silu_mul(project(normed, layer.gate_up))
            hidden, update = project_onto(hidden, gated, layer.down)
        return self._add_norm(hidden, update, self._weights.norm)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[rows, vocab_size]`` in float32 of hidden states from ``forward``."""
        return project(hidden, self._weights.head).float()

    def _attend(
        self, layer: Layer, index: int, normed: Tensor, rotation: Rotation, batch: Batch, pool: Tensor
    ) -> Tensor:
        config = self.config
        qkv = project(normed, layer.qkv, layer.qkv_bias)
        heads = qkv.view(len(normed), -1, config.head_dim)
        keys, values = config.heads, config.heads + config.kv_heads
        query, key, value = heads[:, :keys], heads[:, keys:values], heads[:, values:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
        query = rotate_write(pool, index, batch, query, key, value, rotation)
        return attention(pool, index, batch, query).flatten(1)

    def _add_norm(self, hidden: Tensor, update: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms_norm(hidden, update, weight, self.config.norm_eps)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.config.norm_eps)


def pool_shape(config: ModelConfig, blocks: int, block_size: int) -> torch.Size:
    """Shape of the pool that ``forward`` writes: block-major, one block contiguous through all layers."""
    return torch.Size((blocks, config.layers, 2, config.kv_heads, block_size, config.head_dim))
