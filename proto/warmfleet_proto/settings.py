"""Configuration of every program: one frozen msgspec struct, a TOML file, and ``--set a.b=c``.

An unknown key or a bad value refuses to start and is named. ``to_toml`` prints what is in force.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w

T = TypeVar("T", bound=msgspec.Struct)

_KEY = re.compile(r"[0-9a-fA-F]{64}")


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key."""


def load(kind: type[T], path: str | None = None, overrides: list[str] | None = None) -> T:
    """``kind`` from defaults, then the file, then ``key.path=value`` overrides (values in TOML syntax).

    Raises ConfigError.
    """
    data = _read(path) if path else {}
    for override in overrides or []:
        _apply(data, override)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'configuration'}: {error}{_why_a_string(error, overrides)}") from None


def to_toml(config: msgspec.Struct) -> str:
    """The effective configuration. TOML has no null: keys without a value are named in a comment."""
    values = msgspec.to_builtins(config)
    unset = ", ".join(_unset(values))
    return (f"# not set: {unset}\n" if unset else "") + tomli_w.dumps(_without_none(values))


def read_key(setting: str, path: str) -> bytes:
    """The 32 bytes that a file spells as 64 hex digits. Raises ConfigError."""
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path}: {getattr(error, 'strerror', 'not text')}") from None
    if not _KEY.fullmatch(text):
        raise ConfigError(f"{setting}: {path}: expected 64 hex digits, as `warmfleet key` prints them")
    return bytes.fromhex(text)


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE")
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: {parent} is not a table")
    data[last] = _value(text.strip())


def _why_a_string(error: msgspec.ValidationError, overrides: list[str] | None) -> str:
    """Why an override that looks like a list or a table was taken for a bare word: the slip in it."""
    for override in overrides or []:
        key, _, text = override.partition("=")
        if str(error).endswith(f"got `str` - at `$.{key.strip()}`") and text.lstrip().startswith(("[", "{")):
            try:
                tomllib.loads(f"v = {text}")
            except tomllib.TOMLDecodeError as slip:
                return f": {text} is not TOML: {slip}"
    return ""


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _unset(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys without a value."""
    for key, value in table.items():
        if value is None:
            yield f"{prefix}{key}"
        elif isinstance(value, dict):
            yield from _unset(value, f"{prefix}{key}.")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value
