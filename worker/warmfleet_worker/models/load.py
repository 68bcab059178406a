"""From a path to a model on a device."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from warmfleet_kernels import pack
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.models.gguf_file import GgufFile
from warmfleet_worker.models.huggingface import HuggingFaceFolder
from warmfleet_worker.models.llama import Layer, Llama, Weights
from warmfleet_worker.models.source import Source

Progress = Callable[[str, float], None]


def open_source(path: str) -> Source:
    """The folder or file at ``path``. Raises ConfigError when it is neither or cannot be served."""
    place = Path(path)
    if place.is_dir():
        return HuggingFaceFolder(place)
    if place.suffix == ".gguf":
        return GgufFile(place)
    raise ConfigError(f"{path}: expected a Hugging Face folder or a .gguf file")


def load_model(
    source: Source, dtype: torch.dtype, device: torch.device, threads: int, progress: Progress
) -> Llama:
    """The model with its weights in ``dtype`` on ``device``; layers are read on ``threads`` threads."""
    reader = _Reader(source, dtype, device)
    count = source.config.layers
    layers = []
    with ThreadPoolExecutor(threads) as pool:
        outer = pool.submit(reader.outer)
        for layer in pool.map(reader.layer, range(count)):
            layers.append(layer)
            progress("loading weights", len(layers) / (count + 1))
        embedding, norm, head = outer.result()
    progress("loading weights", 1.0)
    return Llama(source.config, Weights(embedding, tuple(layers), norm, head))


class _Reader:
    """Puts a source's tensors together the way the model wants them."""

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self._source = source
        self._config = source.config
        self._dtype = dtype
        self._device = device

    def outer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding, last norm and output projection."""
        config = self._config
        table = (config.vocab_size, config.hidden)
        embedding = self._place(self._read("model.embed_tokens.weight", *table))
        norm = self._place(self._read("model.norm.weight", config.hidden))
        head = embedding if config.tied else self._place(self._read("lm_head.weight", *table))
        return embedding, norm, pack(head)

    def layer(self, index: int) -> Layer:
        config = self._config
        prefix = f"model.layers.{index}"
        wide = config.heads * config.head_dim
        return Layer(
            attention_norm=self._place(self._read(f"{prefix}.input_layernorm.weight", config.hidden)),
            qkv=pack(self._qkv(f"{prefix}.self_attn", "weight", config.hidden)),
            qkv_bias=self._qkv(f"{prefix}.self_attn", "bias") if config.qkv_bias else None,
            query_norm=self._head_norm(f"{prefix}.self_attn.q_norm.weight"),
            key_norm=self._head_norm(f"{prefix}.self_attn.k_norm.weight"),
            output=self._matrix(self._read(f"{prefix}.self_attn.o_proj.weight", config.hidden, wide)),
            mlp_norm=self._place(self._read(f"{prefix}.post_attention_layernorm.weight", config.hidden)),
            gate_up=self._matrix(
                self._read(f"{prefix}.mlp.gate_proj.weight", config.intermediate, config.hidden),
                self._read(f"{prefix}.mlp.up_proj.weight", config.intermediate, config.hidden),
            ),
            down=self._matrix(
                self._read(f"{prefix}.mlp.down_proj.weight", config.hidden, config.intermediate)
            ),
        )

    def _qkv(self, prefix: str, kind: str, *width: int) -> Tensor:
        query, shared = self._config.heads, self._config.kv_heads
        return self._place(
            *(
                self._read(f"{prefix}.{name}_proj.{kind}", heads * self._config.head_dim, *width)
                for name, heads in (("q", query), ("k", shared), ("v", shared))
            )
        )

    def _head_norm(self, name: str) -> Tensor | None:
        return self._place(self._read(name, self._config.head_dim)) if self._config.qk_norm else None

    def _read(self, name: str, *shape: int) -> Tensor:
        tensor = self._source.tensor(name)
        if tuple(tensor.shape) != shape:
            found = list(tensor.shape)
            raise ConfigError(f"{self._source.path}: tensor {name} has shape {found}, expected {list(shape)}")
        return tensor

    def _matrix(self, *parts: Tensor) -> Tensor:
        """Placed, for products alone."""
        return pack(self._place(*parts))

    def _place(self, *parts: Tensor) -> Tensor:
        """The parts as one matrix on the device."""
        placed = [part.to(self._device).to(self._dtype) for part in parts]
        return placed[0] if len(placed) == 1 else torch.cat(placed)
