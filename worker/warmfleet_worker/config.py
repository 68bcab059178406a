"""A worker's configuration: defaults, a TOML file, and ``--set a.b=c`` on top."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from warmfleet_proto.channel import Tls, check_exposure, split_address
from warmfleet_proto.limits import MAX_CHOICES, MAX_ID_CHARS
from warmfleet_proto.settings import ConfigError

from warmfleet_worker.engine.sim import Timing
from warmfleet_worker.transfer import exchange
from warmfleet_worker.transfer.exchange import Transfer

Positive = Annotated[int, Meta(ge=1)]


class Sim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine without a model. Workers that serve one model share ``model``."""

    model: str = "sim"
    vocab_size: Annotated[int, Meta(ge=256, le=1 << 32)] = 32_000
    max_context: Positive = 131_072
    instant: bool = False  # no simulated time at all
    timing: Timing = Timing()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)] = "worker"
    listen: str = "127.0.0.1:0"  # gRPC; port 0 takes a free one
    http: str = "127.0.0.1:0"  # /health, /metrics and, with the sim engine, a small OpenAI API
    engine: Literal["torch", "sim"] = "torch"
    model: str = ""  # a Hugging Face folder or a GGUF file
    served_name: str = ""  # empty: the model's own name
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16, if native
    device: str = "auto"  # cpu, cuda, cuda:1; auto takes a GPU when there is one
    threads: Positive | None = None  # of the torch engine; default: OMP_NUM_THREADS or all cores
    block_size: Annotated[int, Meta(ge=1, le=1024)] = 16  # tokens
    total_blocks: Positive | None = None  # of the KV pool
    memory_bytes: Positive | None = None  # or so much memory for it
    host_bytes: Annotated[int, Meta(ge=0)] | None = None  # of the host tier; 0: off; default: off, or a
    # quarter of a GiB with a disk tier
    disk_path: str = ""  # folder of the disk tier; empty: off
    disk_bytes: Positive | None = None  # its bound
    eviction: Literal["lru", "cost"] = "lru"  # what goes first, leaves before what they go on from: the least
    # recently used, or what the fewest seconds of prefill make again
    max_running: Annotated[int, Meta(ge=1, le=4096)] = MAX_CHOICES  # sequences in a step
    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    chunk_tokens: Annotated[int, Meta(ge=2)] = 512  # prompt tokens a step
    drain_s: Annotated[float, Meta(ge=0)] = 30.0  # on SIGTERM
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    insecure: bool = False  # listen beyond loopback without TLS
    tls: Tls | None = None  # of the gRPC port
    sim: Sim = Sim()
    transfer: Transfer = Transfer()


def check(config: Config) -> None:
    """What single values cannot show. Raises ConfigError."""
    split_address(config.listen)
    split_address(config.http)
    check_exposure("listen", config.listen, config.tls, config.insecure)
    exchange.check(config.transfer, config.tls, config.insecure)
    check_exposure("http", config.http, None, config.insecure, by="")
    if config.disk_path and not config.disk_bytes:
        raise ConfigError("disk_bytes: the disk tier needs a bound")
    if config.disk_bytes and not config.disk_path:
        raise ConfigError("disk_path: disk_bytes bounds the disk tier, which needs a folder")
    if config.disk_path and config.host_bytes == 0:
        raise ConfigError("host_bytes: what the disk tier gets passes through the host's: it cannot be 0")
    if config.total_blocks and config.memory_bytes:
        raise ConfigError("memory_bytes: either this or total_blocks says how large the pool is")
    if config.engine == "torch" and not config.model:
        raise ConfigError("model: the torch engine needs a Hugging Face folder or a GGUF file")
