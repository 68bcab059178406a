"""What a model's KV means, in 32 bytes, and a small cache so that a second start hashes nothing."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import msgspec

from warmfleet_worker.models.config import ModelConfig


def fingerprint(config: ModelConfig, digests: Mapping[str, str]) -> bytes:
    """SHA-256 of the canonical configuration and the per-tensor digests; 32 bytes."""
    canonical = msgspec.json.encode({"config": asdict(config), "tensors": digests}, order="sorted")
    return hashlib.sha256(b"warmfleet model v1" + canonical).digest()


def tensor_digest(dtype: str, shape: tuple[int, ...], data: memoryview) -> str:
    """SHA-256 (hex) of one tensor as stored."""
    h = hashlib.sha256(f"{dtype} {','.join(map(str, shape))} ".encode())
    h.update(data)
    return h.hexdigest()


class _Entry(msgspec.Struct, frozen=True):
    path: str
    size: int
    mtime_ns: int
    digests: dict[str, str]


def cached_digests(path: Path, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The digests of the tensors in ``path``, computed once for its size and mtime.

    A cache that cannot be read or written costs the time to hash, nothing else.
    """
    real = path.resolve()
    stat = real.stat()
    place = cache_dir() / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    known = _read(place)
    if known and (known.path, known.size, known.mtime_ns) == (str(real), stat.st_size, stat.st_mtime_ns):
        return known.digests
    digests = compute()
    _write(place, _Entry(str(real), stat.st_size, stat.st_mtime_ns, digests))
    return digests


def cache_dir() -> Path:
    """The user's cache folder for digests (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "warmfleet" / "digests"


def _read(place: Path) -> _Entry | None:
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Entry)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(place: Path, entry: _Entry) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(msgspec.json.encode(entry))
        Path(file.name).replace(place)
    except OSError:
        return
