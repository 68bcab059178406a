"""The shape of a model, whichever kind of file it came from."""

from dataclasses import dataclass

from warmfleet_proto.settings import ConfigError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family: RMSNorm, rotary positions, grouped queries, gated SiLU."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_context: int  # positions the model was made for
    norm_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...] = ()  # each frequency is divided by its own; none: all ones
    tied: bool = False  # the output projection is the embedding
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: each head's query and key are normed before they are rotated

    def check(self, where: str) -> None:
        """Refuse what no weights could fit. Raises ConfigError naming ``where``."""
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"{where}: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{where}: head size {self.head_dim} is odd and cannot be rotated")
        if len(self.rope_factors) not in (0, self.head_dim // 2):
            raise ConfigError(
                f"{where}: {len(self.rope_factors)} RoPE factors for a head size of {self.head_dim}"
            )
