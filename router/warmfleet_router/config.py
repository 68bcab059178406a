"""The configurations of the router and of a gateway of its own: TOML, with ``--set a.b=c`` on top."""

import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from warmfleet_proto.channel import Tls, check_exposure, is_loopback
from warmfleet_proto.limits import MAX_ID_CHARS, MAX_SALT_BYTES
from warmfleet_proto.settings import ConfigError

from warmfleet_router.discovery import Discovery, Found
from warmfleet_router.discovery.check import check_address, check_discovery, check_found
from warmfleet_router.gateway import aliases
from warmfleet_router.gateway.intake import Key
from warmfleet_router.gateway.limits import Limits
from warmfleet_router.picker.check import check_listed
from warmfleet_router.routing import Routing
from warmfleet_router.servers.backend import Backend

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Https(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files that clients are shown."""

    certificate: str
    key: str


class Frontend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every gateway needs, embedded in a router or not."""

    http: str = "127.0.0.1:8000"  # of the OpenAI API; port 0 takes a free one
    model: str = ""  # Hugging Face folder or GGUF file: tokenizer and chat template; empty: the demo
    served_name: str = ""  # what clients call the model; empty: whatever the workers do
    # Names that clients may use for a model, or for several by weight: {chat = "a", next = {a = .9, b = .1}}
    aliases: dict[str, str | dict[str, float]] = {}
    tenants: list[Key] = []  # empty: no API keys
    limits: Limits = Limits()
    # Servers that are not ours: [{url = "http://HOST:PORT", kind = "vllm", events = "tcp://HOST:5557"}]
    backends: Annotated[list[Backend], Meta(max_length=10_000)] = []
    # Of further models, our own workers' or servers': {NAME = "a Hugging Face folder or GGUF file"}
    tokenizers: dict[str, str] = {}
    https: Https | None = None
    tls: Tls | None = None  # between our own programs
    insecure: bool = False  # listen beyond loopback without TLS or API keys
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class RouterConfig(Frontend, frozen=True, forbid_unknown_fields=True, kw_only=True):
    listen: str = "127.0.0.1:8001"  # gRPC, for gateways of their own; port 0 takes a free one
    picker: str = ""  # Envoy's external processing (gRPC): an endpoint picker for backends; empty: none
    admin: str = ""  # of the admin page and /metrics; empty: they share a loopback http address
    workers: Annotated[list[str], Meta(max_length=10_000)] = []  # HOST:PORT of their gRPC servers
    discovery: Discovery = Discovery()  # where more workers and backends are found, and watched
    routing: Routing = Routing()
    fleet_key_file: str = ""  # made by ``warmfleet key``; empty: no worker pulls from another
    decision_log: str = ""  # a file for `warmfleet replay --trace FILE`: keys and numbers, never a prompt
    decision_log_mib: Annotated[int, Meta(ge=1, le=1 << 20)] = 64  # of one file, then another begins
    decision_log_files: Annotated[int, Meta(ge=1, le=1000)] = 8  # kept


class GatewayConfig(Frontend, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # HOST:PORT of its gRPC server, or of several over the same workers: the beginning of a prompt says which
    router: str | Annotated[list[str], Meta(min_length=1, max_length=64)] = "127.0.0.1:8001"
    processes: Annotated[int, Meta(ge=1, le=256)] = 1  # that share the http address
    reuse_port: bool = False  # other processes listen on the http address too
    metrics: str = ""  # of /metrics; empty: it shares a loopback http address

    @property
    def routers(self) -> list[str]:
        return [self.router] if isinstance(self.router, str) else self.router


def check(config: RouterConfig | GatewayConfig) -> None:
    """What single values cannot show. Raises ConfigError."""
    check_exposure("http", config.http, config.https, config.insecure, by="https")
    if not (is_loopback(config.http) or config.tenants or config.insecure):
        raise ConfigError("tenants: an address beyond loopback needs API keys, or set insecure = true")
    _check_tenants(config.tenants)
    aliases.check(config.aliases)
    workers = config.workers if isinstance(config, RouterConfig) else ()
    check_found(Found(tuple(workers), tuple(config.backends)))
    if isinstance(config, GatewayConfig):
        for address in config.routers:
            check_address("router", address)
        if len(set(config.routers)) < len(config.routers):
            raise ConfigError("router: an address is listed twice")
        _check_own("metrics", config.metrics, config.insecure)
        return
    check_exposure("listen", config.listen, config.tls, config.insecure)
    if config.picker:
        check_exposure("picker", config.picker, config.tls, config.insecure)
        _check_stubs()
        check_listed(config.backends, config.discovery != Discovery())
    _check_own("admin", config.admin, config.insecure)
    if config.decision_log and not Path(config.decision_log).parent.is_dir():
        raise ConfigError(f"decision_log: {Path(config.decision_log).parent} is no folder")
    check_discovery(config.discovery)


def https_context(https: Https | None) -> ssl.SSLContext | None:
    """Raises ConfigError."""
    if https is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = {"certificate": https.certificate, "key": https.key}
    for name, file in files.items():  # ssl does not say which of them it is
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"https.{name}: {file}: {error.strerror}") from None
    try:
        context.load_cert_chain(https.certificate, https.key)
    except OSError as error:
        raise ConfigError(f"https: {' with '.join(files.values())}: {error}") from None
    return context


def _check_own(key: str, address: str, insecure: bool) -> None:
    if address:
        check_exposure(key, address, None, insecure, by="")


def _check_stubs() -> None:
    if find_spec("envoy") is None or find_spec("envoy.service") is None:
        raise ConfigError("picker: needs Envoy's stubs; pip install 'warmfleet[envoy]'")


def _check_tenants(tenants: list[Key]) -> None:
    digests = [digest for tenant in tenants for digest in tenant.key_sha256]
    for number, tenant in enumerate(tenants):
        key = f"tenants[{number}]"
        if not 0 < len(tenant.name) <= MAX_ID_CHARS:
            raise ConfigError(f"{key}.name: expected 1 to {MAX_ID_CHARS} characters")
        if not all(_SHA256.fullmatch(digest) for digest in tenant.key_sha256):
            raise ConfigError(f"{key}.key_sha256: expected 64 lower-case hex digits each")
        if tenant.salt is not None and not 0 < len(tenant.salt.encode()) <= MAX_SALT_BYTES:
            raise ConfigError(f"{key}.salt: expected 1 to {MAX_SALT_BYTES} bytes")
    if len(set(digests)) < len(digests):
        raise ConfigError("tenants: a key is listed twice")
    names = [tenant.name for tenant in tenants]
    if len(set(names)) < len(names):
        raise ConfigError("tenants: a name is used twice")
