"""A Hugging Face folder: config.json and safetensors, in one file or sharded by an index."""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.models.config import ModelConfig
from warmfleet_worker.models.fingerprint import cached_digests, tensor_digest
from warmfleet_worker.models.rope import linear_factors, llama3_factors

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Positive = Annotated[int, msgspec.Meta(gt=0)]


class _Config(msgspec.Struct, frozen=True):
    """The keys of config.json that decide what is computed."""

    model_type: str
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    rms_norm_eps: float
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None  # transformers 5 writes both of the above here
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    quantization_config: dict[str, Any] | None = None


class HuggingFaceFolder:
    """A ``Source`` over a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self.config = parse_config(folder / "config.json")
        self._files = _files(folder)

    def tensor(self, name: str) -> Tensor:
        handle = self._handles.get(name)
        if handle is None:
            raise ConfigError(f"{self.path}: tensor {name} is missing")
        tensor: Tensor = handle.get_tensor(name)
        if tensor.dtype not in DTYPES:
            raise ConfigError(f"{self.path}: tensor {name} has dtype {tensor.dtype}, which is not supported")
        return tensor

    def digests(self) -> dict[str, str]:
        digests: dict[str, str] = {}
        for file in self._files:
            digests |= cached_digests(file, lambda file=file: _digests(_open(file)))  # type: ignore[misc]
        return digests

    @cached_property
    def _handles(self) -> dict[str, Any]:
        """The open file that holds each tensor."""
        return {name: handle for handle in map(_open, self._files) for name in handle.keys()}  # noqa: SIM118


def parse_config(path: Path) -> ModelConfig:
    """The configuration in ``path``. Raises ConfigError naming the key that cannot be served."""
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}") from None
    _refuse_unsupported(raw, path)
    head_dim = raw.head_dim or raw.hidden_size // raw.num_attention_heads
    theta, factors = _rope(raw, head_dim, path)
    config = ModelConfig(
        layers=raw.num_hidden_layers,
        hidden=raw.hidden_size,
        heads=raw.num_attention_heads,
        kv_heads=raw.num_key_value_heads or raw.num_attention_heads,
        head_dim=head_dim,
        intermediate=raw.intermediate_size,
        vocab_size=raw.vocab_size,
        max_context=raw.max_position_embeddings,
        norm_eps=raw.rms_norm_eps,
        rope_theta=theta,
        rope_factors=factors,
        tied=raw.tie_word_embeddings,
        qkv_bias=raw.model_type == "qwen2",
        qk_norm=raw.model_type == "qwen3",
    )
    config.check(str(path))
    return config


def _refuse_unsupported(raw: _Config, path: Path) -> None:
    if raw.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{path}: model_type {raw.model_type!r} is not supported; supported are {known}")
    windowed = raw.sliding_window is not None and raw.sliding_window < raw.max_position_embeddings
    if windowed and raw.use_sliding_window is not False:
        raise ConfigError(f"{path}: sliding_window {raw.sliding_window} is not supported")
    if raw.hidden_act != "silu":
        raise ConfigError(f"{path}: hidden_act {raw.hidden_act!r} is not supported")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if getattr(raw, key):
            raise ConfigError(f"{path}: {key} is not supported")


def _rope(raw: _Config, head_dim: int, path: Path) -> tuple[float, tuple[float, ...]]:
    """Theta, and what each frequency is divided by."""
    parameters = {"rope_theta": raw.rope_theta} | (raw.rope_scaling or {}) | (raw.rope_parameters or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    try:
        theta = float(parameters["rope_theta"])
        if kind == "default":
            return theta, ()
        if kind == "linear":
            return theta, linear_factors(float(parameters["factor"]), head_dim)
        if kind == "llama3":
            keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            factor, low, high, trained = (float(parameters[key]) for key in keys)
            return theta, llama3_factors(theta, head_dim, factor, low, high, trained)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: RoPE scaling {kind!r}: bad or missing {error}") from None
    raise ConfigError(f"{path}: RoPE scaling {kind!r} is not supported")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def _files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, each of which exists."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{index}: {error}") from None
    for name in names:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: no such file")
    return [folder / name for name in names]


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: not a readable safetensors file: {error}") from None


def _digests(handle: Any) -> dict[str, str]:
    def digest(name: str) -> str:
        tensor = handle.get_tensor(name)
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        return tensor_digest(str(tensor.dtype), tuple(tensor.shape), data)

    names = list(handle.keys())
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))
