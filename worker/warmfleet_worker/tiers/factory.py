"""The tiers that a configuration asks for."""

from pathlib import Path

from warmfleet_proto.settings import ConfigError

from warmfleet_worker.config import Config
from warmfleet_worker.runner import Runner
from warmfleet_worker.tiers.below import Below
from warmfleet_worker.tiers.disk import DiskStore
from warmfleet_worker.tiers.host import HostTier
from warmfleet_worker.tiers.made import made_with

_HOST_BYTES = 256 << 20  # where there is a disk tier: what it gets passes through the host's


def make_below(config: Config, runner: Runner) -> Below | None:
    """None without tiers. Raises ConfigError."""
    host_bytes = config.host_bytes
    if host_bytes is None:
        host_bytes = _HOST_BYTES if config.disk_path else 0
    if not host_bytes:
        return None
    engine = runner.engine
    slots = _blocks("host_bytes", host_bytes, engine.block_bytes)
    store = None
    if config.disk_path:
        assert config.disk_bytes is not None
        _blocks("disk_bytes", config.disk_bytes, engine.block_bytes)
        store = DiskStore(Path(config.disk_path), made_with(engine), config.disk_bytes)
    return Below(runner, HostTier(slots, engine.block_size), store)


def _blocks(key: str, size: int, block_bytes: int) -> int:
    if size < block_bytes:
        raise ConfigError(f"{key}: {size} bytes hold no block: one is {block_bytes} bytes")
    return size // block_bytes
