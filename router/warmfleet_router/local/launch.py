"""What ``warmfleet up`` starts: the command lines and environments of its children. Loopback only."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from warmfleet_proto.grant import source_key

from warmfleet_router.keys import fleet_key

HOST = "127.0.0.1"
_DRAIN_S = 2.0  # on Ctrl-C
_SHARED_GPU_GIB = 4.0


class Options(NamedTuple):
    workers: int
    model: Path  # of the simulated engine only the tokenizer is used
    vocab_size: int | None  # of that tokenizer; None: the engine has a model
    port: int  # of the gateway; 0 picks one
    dtype: str
    kv_gib: float | None  # None: the worker's own default
    router_sets: Sequence[str] = ()  # KEY=VALUE

    @property
    def engine(self) -> str:
        return "torch" if self.vocab_size is None else "sim"


def write_keys(folder: Path, workers: Sequence[str]) -> dict[str, Path]:
    """A new fleet's keys, in files that only this user can read: by worker, and the router's under ""."""
    fleet = fleet_key()
    keys = {"": fleet} | {worker: source_key(fleet, worker) for worker in workers}
    paths = {name: folder / f"{name or 'fleet'}.key" for name in keys}
    for name, path in paths.items():
        path.touch(0o600)
        path.write_text(keys[name].hex())
    return paths


def worker_command(options: Options, name: str, device: int, key: Path) -> list[str]:
    """``device`` counts the fleet's workers from 0 and chooses a GPU where there are some; ``key``: of its
    grants."""
    settings: dict[str, object] = {
        "name": name,
        "transfer.key_file": str(key),
        "listen": f"{HOST}:0",
        "http": f"{HOST}:0",
        "engine": options.engine,
        "drain_s": _DRAIN_S,
    }
    if options.vocab_size is None:
        settings |= {"model": str(options.model), "dtype": options.dtype, **_placed(options, device)}
    else:
        settings |= {"sim.vocab_size": options.vocab_size}
    return _command("worker", settings)


def _placed(options: Options, device: int) -> dict[str, object]:
    """Which GPU, if there are some, and how much of it: a worker's default is most of a whole one."""
    gpus, gib = _gpus(), options.kv_gib
    if gib is None and 0 < gpus < options.workers:
        gib = _SHARED_GPU_GIB
    settings: dict[str, object] = {"device": f"cuda:{device % gpus}"} if gpus else {}
    return settings if gib is None else settings | {"memory_bytes": int(gib * 2**30)}


def router_command(options: Options, workers: Sequence[str], key: Path) -> list[str]:
    settings = {
        "fleet_key_file": str(key),
        "workers": list(workers),
        "http": f"{HOST}:{options.port}",
        "listen": f"{HOST}:0",
        "model": str(options.model),
    }
    return [
        *_command("router", settings),
        *(part for each in options.router_sets for part in ("--set", each)),
    ]


def environment(options: Options) -> dict[str, str]:
    """The cores divided by the workers: torch's threads would otherwise fight for them."""
    threads = max(1, _cores() // options.workers)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _command(name: str, settings: Mapping[str, object]) -> list[str]:
    """``warmfleet NAME --set ...`` in this interpreter; JSON values read as TOML ones."""
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [sys.executable, "-m", "warmfleet_router.cli", name, *sets]


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """NVIDIA devices that the workers will see; counted without torch, which this package does without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
