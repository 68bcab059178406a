"""What a server's /metrics says of its load and its cache, under the names of each engine."""

import re
from typing import NamedTuple

MOST = 1 << 31

_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_BLOCKS = "vllm:cache_config_info"
_TOKENS = "sglang:max_total_num_tokens"
# A page has 55 KB, and each server's comes twice a second: only lines that begin so are looked at. Each is
# tried once a line and once a word, since a page of megabytes may be anything.
_NAMES = "|".join((*_RUNNING, *_WAITING, _BLOCKS, _TOKENS))
_LINE = re.compile(rf"\n({_NAMES})(\{{[^}}\n]*\}})? ([0-9.eE+-]+|NaN|[+-]?Inf)")
_LABEL = re.compile(r'\b(\w+)="([^"]*)"')


class Figures(NamedTuple):
    """Zero where the server does not tell."""

    running: int = 0
    waiting: int = 0
    block_size: int = 0  # tokens
    blocks: int = 0
    tokens: int = 0  # that the cache holds


def read(text: str, rank: int = -1) -> Figures:
    """The figures of one data-parallel engine of the server, or with rank -1 of all, their requests
    summed."""
    running = waiting = tokens = 0.0
    blocks: dict[str, int] = {}
    for name, labels, value in _LINE.findall("\n" + text):
        if rank >= 0 and f'engine="{rank}"' not in labels:
            continue
        if name in _RUNNING:
            running += _number(value)
        elif name in _WAITING:
            waiting += _number(value)
        elif name == _TOKENS:
            tokens += _number(value)
        elif name == _BLOCKS:
            blocks = {key: int(n) for key, n in _LABEL.findall(labels) if n.isdecimal() and len(n) < 10}
    return Figures(
        _whole(running),
        _whole(waiting),
        blocks.get("block_size", 0),
        blocks.get("num_gpu_blocks", 0),
        _whole(tokens),
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value < MOST else 0.0


def _whole(value: float) -> int:
    return int(min(value, MOST))
