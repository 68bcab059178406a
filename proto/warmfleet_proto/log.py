"""Structured logs: one JSON object a line on stderr. No prompt text, ever."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from warmfleet_proto.settings import ConfigError

_LEVELS = ("debug", "info", "warning", "error")
_encoder = msgspec.json.Encoder(enc_hook=str)


def setup(level: str = "info") -> None:
    """Sends every record of the process to stderr as JSON. Raises ConfigError for an unknown level."""
    if level not in _LEVELS:
        raise ConfigError(f"log_level = {level!r}: expected one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """One record called ``name``; ``fields`` become keys of its line."""
    logger.log(level, name, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """time, level, logger and event first, then the record's fields; an exception under ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()
