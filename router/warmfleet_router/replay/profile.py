"""How long a modelled engine's step takes, and how fast it brings KV from elsewhere."""

from pathlib import Path

import msgspec
from warmfleet_proto.settings import ConfigError, load
from warmfleet_proto.work import Work

PROFILES = Path(__file__).parent


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Seconds unless the name says otherwise. All zero but ``prefill_token`` is a flat engine.

    A chunk of n tokens after c of context takes ``prefill_base`` + n x (``prefill_token`` +
    ``prefill_pair`` x (c + n / 2)); a decode step of b sequences over t tokens of context
    ``decode_base`` + b x ``decode_sequence`` + t x ``decode_token``.
    """

    name: str = "flat"
    prefill_base: float = 0.0
    prefill_token: float = 0.0
    prefill_pair: float = 0.0
    decode_base: float = 0.0
    decode_sequence: float = 0.0
    decode_token: float = 0.0
    kv_bytes_per_token: int = 131_072
    chunk_tokens: int = 8192
    max_running: int = 256
    depth: int = 1  # steps under way: with 2 the next one is planned while one runs
    host_bytes_per_s: float = 0.0  # 0: no host tier
    link_bytes_per_s: float = 0.0  # between workers; 0: no pulls
    link_latency: float = 0.0

    def chunk_s(self, tokens: int, context: int) -> float:
        return tokens * (self.prefill_token + self.prefill_pair * (context + 0.5 * tokens))

    def step_s(self, work: Work) -> float:
        """Seconds of one step, or of several together."""
        return (
            work.prompt_steps * self.prefill_base
            + work.prompt_tokens * self.prefill_token
            + work.prompt_pairs * self.prefill_pair
            + work.decode_steps * self.decode_base
            + work.decode_sequences * self.decode_sequence
            + work.decode_context * self.decode_token
        )

    def bring_s(self, tokens: int, bytes_per_s: float) -> float:
        return tokens * self.kv_bytes_per_token / bytes_per_s


def flat(block_s: float, block_size: int) -> Profile:
    """An engine that computes one prompt after another, a block in ``block_s`` whatever its context."""
    return Profile(prefill_token=block_s / block_size, chunk_tokens=1 << 30, max_running=1)


def profile_of(engine: str) -> Profile:
    """The profile of this name that is shipped, or of a TOML file. Raises ConfigError."""
    shipped = PROFILES / f"{engine}.toml"
    if not (shipped.exists() or Path(engine).exists()):
        names = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise ConfigError(f"{engine}: no such file, and the profiles that are shipped are {names}")
    return load(Profile, str(shipped) if shipped.exists() else engine)
