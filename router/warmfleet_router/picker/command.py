"""``warmfleet envoy-config``: Envoy's bootstrap for the fleet of a router's configuration."""

import argparse
import json

from warmfleet_proto.channel import Tls, split_address
from warmfleet_proto.command import Command
from warmfleet_proto.settings import ConfigError, load

from warmfleet_router.config import RouterConfig, check
from warmfleet_router.discovery import Discovery
from warmfleet_router.picker.check import check_plain
from warmfleet_router.servers.backend import Backend

_EPILOG = """\
The router's configuration names the backends and the picker's address; Envoy's bootstrap for them goes to
stdout. A request whose picker is not there, or is slow, goes to the next endpoint in turn as it is (an
alias is no model that a server has: 404). Envoy cannot go on without its picker, and answers 500 until it
is back, where tenants have API keys (the picker checks them), where a backend has a key or a base path (the
picker sends them) and with --duplex. Where tenants have keys, only completions and GET /v1/models pass, the
latter to a listed backend. With --duplex Envoy does not say when an answer ends, either: a request counts
as load until its answer begins, and a stream, whose headers may come at once, until its first token is due.

Backends may be names (Envoy and the picker both ask DNS: a name should have one address; for more there is
discovery.dns) and https (certificates are verified). All that are listed must have the same key and the same
base path, since Envoy goes on to the next one with the headers of a request whose server is gone: for several
keys take a router and an Envoy each, or discovery. With discovery.file or discovery.dns Envoy goes wherever
the picker says and nowhere else, by plain HTTP; without the picker, and with what is no completion, only to
listed backends. Write the bootstrap anew when backends, discovery or tenants change: to an Envoy that knows
of no discovery a pick among discovered servers is none, and it asks a listed one with what that pick has set.

Without --usage one answer of sixty-four passes the picker, and none with --duplex, to see when first tokens
come: of the others nothing is known but their headers. Nothing is known of the tokens that answers have, or
of those of their prompts that the server had cached. A server's KV events are then not checked against its
answers, and what a server without events is taken to hold is not corrected. With --usage streams are asked
for usage, which is kept from clients that did not want it, and each chunk waits for the picker's answer:
some 80 us of CPU, less where they come faster than it reads. Where Envoy can go on without its picker,
answers under way do as well; elsewhere they break off with one that dies, but not with one that is ended,
nor with --duplex where --usage is not given.

A picker beyond loopback is talked to with the certificate, key and authority of the configuration's tls;
Envoy reads the files where it runs, so name others where those are elsewhere.

examples:
  warmfleet envoy-config --config router.toml > envoy.json && envoy -c envoy.json
  warmfleet envoy-config --config router.toml --listen 0.0.0.0:8080 --duplex
  warmfleet envoy-config --config router.toml --usage
  warmfleet envoy-config --config router.toml --picker router.example:9002 --certificate /etc/envoy/own.pem \\
      --key /etc/envoy/own.key --authority /etc/envoy/fleet.pem
"""
_FILES = {
    "certificate": "that Envoy shows the picker; default: tls.certificate",
    "key": "of that certificate; default: tls.key",
    "authority": "that signs the picker's certificate; default: tls.authority",
}
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # of Debian, Alpine and Envoy's own images


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("--config", metavar="FILE", help="the router's TOML file")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one key of it")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", help="of Envoy; default: %(default)s"
    )
    parser.add_argument("--picker", metavar="HOST:PORT", help="as Envoy reaches it; default: as configured")
    for name, says in _FILES.items():
        parser.add_argument(f"--{name}", metavar="FILE", default="", help=says)
    parser.add_argument(
        "--backend-authority",
        metavar="FILE",
        default=_AUTHORITIES,
        help="that signs certificates of https backends; default: %(default)s",
    )
    parser.add_argument(
        "--duplex", action="store_true", help="stream bodies to the picker (FULL_DUPLEX_STREAMED)"
    )
    parser.add_argument(
        "--usage", action="store_true", help="have answers pass the picker, which reads their usage"
    )


def _run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError."""
    config = load(RouterConfig, arguments.config, arguments.set)
    if not config.picker:
        raise ConfigError("picker: set its address, as in picker = '127.0.0.1:9002'")
    found = config.discovery != Discovery()
    if not (config.backends or found):
        raise ConfigError("backends: Envoy has nowhere to send requests")
    check(config)
    for backend in _in_file(config.discovery):
        check_plain(backend)
    from warmfleet_router.picker.bootstrap import Plan, bootstrap  # Envoy's stubs are an extra

    plan = Plan(
        arguments.listen,
        _reachable(arguments.picker or config.picker),
        config.backends,
        config.limits,
        arguments.duplex,
        _tls(arguments, config.tls),
        arguments.backend_authority,
        found,
        bool(config.tenants),
        arguments.usage,
    )
    print(json.dumps(bootstrap(plan), indent=1))
    return 0


def _reachable(picker: str) -> str:
    """Raises ConfigError."""
    host, port = split_address(picker)
    if host in ("0.0.0.0", "::") or not port:  # noqa: S104
        raise ConfigError(f"picker: Envoy cannot connect to {picker}; say where it is by --picker HOST:PORT")
    return picker


def _tls(arguments: argparse.Namespace, configured: Tls | None) -> Tls | None:
    """What Envoy and the picker prove to each other. Raises ConfigError."""
    given = {key: getattr(arguments, key) for key in ("certificate", "key", "authority")}
    if configured is None:
        if any(given.values()):
            raise ConfigError("tls: without it in the configuration the picker talks in the clear")
        return None
    return Tls(**{key: value or getattr(configured, key) for key, value in given.items()})


def _in_file(discovery: Discovery) -> tuple[Backend, ...]:
    """The servers that the discovery file lists now. Raises ConfigError."""
    from warmfleet_router.discovery.file import read

    return read(discovery.file).backends if discovery.file else ()


command = Command("Write Envoy's bootstrap for the router's backends.", _configure, _run)
