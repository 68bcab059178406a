"""What ``warmfleet up`` starts: the command lines and environments of its children. Loopback only."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
_DRAIN_S = 2.0  # on Ctrl-C


class Options(NamedTuple):
    workers: int
    model: Path | None  # None: the engine needs none
    port: int  # of the gateway; 0 picks one
    engine: str
    dtype: str
    kv_gib: float


def worker_command(options: Options, name: str, device: int) -> list[str]:
    """``device`` counts the fleet's workers from 0 and chooses a GPU where there are some."""
    settings: dict[str, object] = {
        "name": name,
        "listen": f"{HOST}:0",
        "http": f"{HOST}:0",
        "engine": options.engine,
        "drain_s": _DRAIN_S,
    }
    if options.engine == "torch":
        settings |= {
            "model": str(options.model),
            "dtype": options.dtype,
            "memory_bytes": int(options.kv_gib * 2**30),
        }
        if gpus := _gpus():
            settings["device"] = f"cuda:{device % gpus}"
    return _command("worker", settings)


def router_command(options: Options, workers: Sequence[str]) -> list[str]:
    settings = {"workers": list(workers), "http": f"{HOST}:{options.port}", "listen": f"{HOST}:0"}
    return _command("router", settings)


def environment(options: Options) -> dict[str, str]:
    """The cores divided by the workers: torch's threads would otherwise fight for them."""
    threads = max(1, _cores() // options.workers)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _command(name: str, settings: Mapping[str, object]) -> list[str]:
    """``warmfleet NAME --set ...`` in this interpreter; JSON values read as TOML ones."""
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [sys.executable, "-m", "warmfleet_router.cli", name, *sets]


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """NVIDIA devices that the workers will see; counted without torch, which this package does without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
