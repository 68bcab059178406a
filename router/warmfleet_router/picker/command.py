"""``warmfleet envoy-config``: Envoy's bootstrap for the fleet of a router's configuration."""

import argparse
import json

from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError, load

from warmfleet_router.config import RouterConfig, check

_EPILOG = """\
The router's configuration names the backends and the picker's address; Envoy's bootstrap for them goes
to stdout. A request whose picker is not there, or is slow, goes to the next endpoint in turn. With --duplex
Envoy cannot go on without its picker: it answers 500 until the picker is back. And it does not say when an
answer ends: a request counts as load only until its answer begins.

examples:
  warmfleet envoy-config --config router.toml > envoy.json && envoy -c envoy.json
  warmfleet envoy-config --config router.toml --listen 0.0.0.0:8080 --duplex
"""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--config", metavar="FILE", help="the router's TOML file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one key of it")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="of Envoy; default: %(default)s"
    )
    parser.add_argument(
        "--duplex", action="store_true", help="stream bodies to the picker (FULL_DUPLEX_STREAMED)"
    )


def _run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError."""
    config = load(RouterConfig, arguments.config, arguments.set)
    if not config.picker:
        raise ConfigError("picker: set its address, as in picker = '127.0.0.1:9002'")
    if not config.backends:
        raise ConfigError("backends: Envoy has nowhere to send requests")
    check(config)
    from warmfleet_router.picker.bootstrap import bootstrap  # Envoy's stubs are an extra

    made = bootstrap(arguments.listen, config.picker, config.backends, config.limits, arguments.duplex)
    print(json.dumps(made, indent=1))
    return 0


command = Command("Write Envoy's bootstrap for the router's backends.", _configure, _run)
