"""The worker's command line, and the process around one Worker."""

import argparse
import asyncio
import gc
import json
import logging
import signal

import uvloop
from warmfleet_proto import log
from warmfleet_proto.command import Command, add_options, given
from warmfleet_proto.settings import load, to_toml
from warmfleet_proto.tasks import cancelled

from warmfleet_worker.config import Config, check
from warmfleet_worker.engine.factory import make_engine
from warmfleet_worker.worker import Worker

_log = logging.getLogger(__name__)

_FLAGS = {
    "name": "how routers and people call this worker, and no other one",
    "listen": "HOST:PORT of the gRPC server; port 0 takes a free one",
    "http": "HOST:PORT of /health and /metrics",
    "engine": "torch: a model; sim: a simulated one that checks itself",
    "model": "a Hugging Face folder or a GGUF file (torch)",
    "served_name": "what clients call the model; default: its own name",
    "device": "cpu, cuda, cuda:1; auto takes a GPU when there is one (torch)",
    "dtype": "bfloat16, float16 or float32 (torch)",
}

_EPILOG = """\
When it is ready it prints one line of JSON on stdout:
  {"ready": true, "worker": NAME, "grpc": "HOST:PORT", "http": "HOST:PORT"}
SIGTERM or SIGINT drains it: nothing more is admitted, what runs may end within drain_s.

examples:
  warmfleet worker --name w1 --model ./SmolLM2-135M-Instruct --listen 127.0.0.1:50061
  warmfleet worker --engine sim --set sim.instant=true --set total_blocks=8000
  warmfleet worker --config worker.toml --print-config
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_options(parser, _FLAGS, _EPILOG, "sim.vocab_size=512", "TLS")


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError."""
    config = load(Config, arguments.config, given(arguments, _FLAGS))
    if arguments.print_config:
        print(to_toml(config), end="")
        return 0
    log.setup(config.log_level)
    check(config)
    return uvloop.run(serve(config))


async def serve(config: Config) -> int:
    """Runs the worker until a signal, or until it cannot go on. Returns the exit status. Raises
    ConfigError."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    worker = Worker(config, await asyncio.to_thread(make_engine, config))
    await worker.start()
    gc.collect()
    gc.freeze()  # what was loaded stays: looking through all of it would stop the worker for .2 s
    ready = {"ready": True, "worker": config.name, "grpc": worker.grpc_address, "http": worker.http_address}
    print(json.dumps(ready), flush=True)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, worker.loop], return_when=asyncio.FIRST_COMPLETED)
    failed = worker.loop.done()
    if failed:
        _log.error("the worker's loop failed", exc_info=worker.loop.exception())
    else:
        _log.info("draining for up to %g s", config.drain_s)
        unfinished = await worker.drain(config.drain_s)
        _log.info("drained: %d requests unfinished", unfinished)
    await cancelled(stopped)
    await worker.close()
    return 1 if failed else 0


command = Command("Run one worker: a model, its engine and its KV cache.", configure, run)
