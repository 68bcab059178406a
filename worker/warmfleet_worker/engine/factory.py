"""The engine that a configuration asks for. torch is imported only when it is needed."""

import logging
import time

from warmfleet_worker.config import Config
from warmfleet_worker.engine.base import Engine
from warmfleet_worker.engine.sim import INSTANT, SimEngine

_log = logging.getLogger(__name__)

_SIM_BLOCKS = 4096
_CPU_POOL_BYTES = 1 << 30
_GPU_POOL_SHARE = 0.6  # of what is free before the weights are loaded


def make_engine(config: Config) -> Engine:
    """Raises ConfigError for a model or a device that cannot be used."""
    return _sim(config) if config.engine == "sim" else _torch(config)


def _sim(config: Config) -> Engine:
    sim = config.sim
    return SimEngine(
        sim.model,
        block_size=config.block_size,
        total_blocks=config.total_blocks or _SIM_BLOCKS,
        vocab_size=sim.vocab_size,
        max_context=sim.max_context,
        timing=INSTANT if sim.instant else sim.timing,
        clock=time.perf_counter,
    )


def _torch(config: Config) -> Engine:
    import torch

    from warmfleet_worker.engine.torch import TorchEngine

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_bytes = config.memory_bytes
    if config.total_blocks is None and memory_bytes is None:
        memory_bytes = _CPU_POOL_BYTES
        if device.startswith("cuda") and torch.cuda.is_available():
            memory_bytes = int(torch.cuda.mem_get_info(device)[0] * _GPU_POOL_SHARE)
    return TorchEngine.load(
        config.model,
        name=config.served_name,
        dtype=config.dtype,
        device=device,
        block_size=config.block_size,
        total_blocks=config.total_blocks,
        memory_bytes=memory_bytes,
        threads=config.threads or torch.get_num_threads(),
        progress=lambda stage, done: _log.info("%s: %.0f %%", stage, 100 * done),
    )
