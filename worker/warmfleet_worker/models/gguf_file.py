"""A GGUF file of llama.cpp: architecture ``llama`` (Llama, SmolLM, Mistral), any quantisation."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gguf import GGUFReader
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize
from torch import Tensor
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.models.config import ModelConfig
from warmfleet_worker.models.fingerprint import cached_digests, tensor_digest
from warmfleet_worker.models.rope import linear_factors

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

T = TypeVar("T")


class _Reader(GGUFReader):
    """The library's reader over a plain view of its memory map.

    Slicing an np.memmap costs five times a plain array, and a vocabulary is a hundred thousand slices:
    1 s instead of 3 s for the demo model.
    """

    @property  # type: ignore[override]
    def data(self) -> np.ndarray[Any, Any]:
        return self._view

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._view = mapped.view(np.ndarray)


class GgufFile:
    """A ``Source`` over one file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._reader = _open(path)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.config = self._config()
        self.config.check(self.path)

    def tensor(self, name: str) -> Tensor:
        own = _own_name(name)
        tensor = torch.from_numpy(self._floats(own))
        if own.endswith("attn_q.weight"):
            return _uninterleave(tensor, self.config.heads)
        if own.endswith("attn_k.weight"):
            return _uninterleave(tensor, self.config.kv_heads)
        return tensor

    def digests(self) -> dict[str, str]:
        return cached_digests(Path(self.path), self._digests)

    def _floats(self, own: str) -> np.ndarray[Any, Any]:
        stored = self._tensors.get(own)
        if stored is None:
            raise ConfigError(f"{self.path}: tensor {own} is missing")
        try:
            floats = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            kind = stored.tensor_type.name
            raise ConfigError(f"{self.path}: tensor {own} has type {kind}, which is not supported") from None
        return floats if floats.flags.writeable else floats.copy()

    def _digests(self) -> dict[str, str]:
        def digest(tensor: ReaderTensor) -> str:
            shape = tuple(int(size) for size in tensor.shape)
            return tensor_digest(tensor.tensor_type.name, shape, np.ascontiguousarray(tensor.data).data)

        with ThreadPoolExecutor() as pool:
            return dict(zip(self._tensors, pool.map(digest, self._tensors.values()), strict=True))

    def _config(self) -> ModelConfig:
        architecture = self._field("general.architecture", str)
        if architecture != "llama":
            raise ConfigError(
                f"{self.path}: architecture {architecture!r} is not supported; supported is llama"
            )
        if self._field("llama.expert_count", int, 0):
            raise ConfigError(f"{self.path}: llama.expert_count: mixtures of experts are not supported")
        heads = self._positive("llama.attention.head_count")
        hidden = self._positive("llama.embedding_length")
        head_dim = self._positive("llama.attention.key_length", hidden // heads)
        if self._field("llama.rope.dimension_count", int, head_dim) != head_dim:
            raise ConfigError(
                f"{self.path}: llama.rope.dimension_count differs from the head size {head_dim}"
            )
        return ModelConfig(
            layers=self._positive("llama.block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=self._positive("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate=self._positive("llama.feed_forward_length"),
            vocab_size=self._vocab_size(),
            max_context=self._positive("llama.context_length"),
            norm_eps=self._field("llama.attention.layer_norm_rms_epsilon", float),
            rope_theta=self._field("llama.rope.freq_base", float, 10_000.0),
            rope_factors=self._rope_factors(head_dim),
            tied="output.weight" not in self._tensors,
        )

    def _rope_factors(self, head_dim: int) -> tuple[float, ...]:
        if ROPE_FACTORS in self._tensors:
            return tuple(self._floats(ROPE_FACTORS).tolist())
        kind = self._field("llama.rope.scaling.type", str, "none")
        if kind == "linear":
            return linear_factors(self._field("llama.rope.scaling.factor", float), head_dim)
        if kind != "none":
            raise ConfigError(f"{self.path}: llama.rope.scaling.type {kind!r} is not supported")
        return ()

    def _vocab_size(self) -> int:
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise ConfigError(f"{self.path}: tensor token_embd.weight is missing")
        return int(embedding.shape[-1])

    def _positive(self, key: str, default: int | None = None) -> int:
        value = self._field(key, int, default)
        if value <= 0:
            raise ConfigError(f"{self.path}: {key} is {value}, expected a positive number")
        return value

    def _field(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The metadata value of ``key``. Raises ConfigError when it is absent or of another kind."""
        field = self._reader.get_field(key)
        value = default if field is None else field.contents()
        if value is None:
            raise ConfigError(f"{self.path}: {key} is missing")
        if not isinstance(value, kind):
            raise ConfigError(f"{self.path}: {key} is {value!r:.100}, expected {kind.__name__}")
        return value


def _open(path: Path) -> GGUFReader:
    try:
        return _Reader(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except Exception as error:  # the reader trusts its input: a damaged file fails in many ways
        raise ConfigError(f"{path}: not a readable GGUF file: {error}") from None


def _own_name(name: str) -> str:
    """The file's name of the tensor that Hugging Face calls ``name``."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def _uninterleave(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order of q and k, which pairs dimension 2i with 2i + 1 instead of i + d/2."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)
