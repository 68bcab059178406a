"""gRPC servers and channels as every program of the fleet makes them: bounded, with health and reflection.

Loopback may be plain. Any other address needs mutual TLS, or ``insecure`` spelled out in the configuration.
"""

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import msgspec
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from warmfleet_proto.limits import MESSAGE_BYTES
from warmfleet_proto.settings import ConfigError


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PEM files. Both ends of a channel show a certificate that the same authority signed."""

    certificate: str
    key: str
    authority: str


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {address!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(key: str, address: str, tls: object | None, insecure: bool, by: str = "tls") -> None:
    """Refuses an address that others reach in the clear. ``key`` names the setting, ``by`` the one that would
    protect it, which is ``tls``; empty: there is none. Raises ConfigError."""
    if tls is None and not insecure and not is_loopback(address):
        way = f"configure {by}, or set" if by else "there is no TLS for it; keep it there, or set"
        raise ConfigError(f"{key} = {address!r} is not loopback: {way} insecure = true")


class Health:
    """The standard gRPC health service of one server: flips all of its services at once."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = ["", *names]
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.servicer.set(name, status.SERVING if serving else status.NOT_SERVING)


def server(
    services: Sequence[ServiceDescriptor], *, message_bytes: int = MESSAGE_BYTES
) -> tuple[grpc.aio.Server, Health]:
    """A server with health and reflection for ``services``; the caller adds their servicers."""
    names = [service.full_name for service in services]
    made = grpc.aio.server(options=_options(message_bytes))
    checks = Health(names)
    health_pb2_grpc.add_HealthServicer_to_server(checks.servicer, made)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], made)
    return made, checks


def bind(made: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Opens the port and returns its number (port 0 picks one). Raises ConfigError when it is taken."""
    try:
        if tls is None:
            return made.add_insecure_port(address)
        key, certificate, authority = _pem(tls)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )
        return made.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None


def connect(address: str, tls: Tls | None = None, *, message_bytes: int = MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel that reconnects at most a second after its peer is back."""
    options = [
        *_options(message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    key, certificate, authority = _pem(tls)
    return grpc.aio.secure_channel(
        address, grpc.ssl_channel_credentials(authority, key, certificate), options=options
    )


def _options(message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.so_reuseport", 0),
    ]


def _pem(tls: Tls) -> tuple[bytes, bytes, bytes]:
    try:
        return (
            Path(tls.key).read_bytes(),
            Path(tls.certificate).read_bytes(),
            Path(tls.authority).read_bytes(),
        )
    except OSError as error:
        raise ConfigError(f"tls: {error.filename}: {error.strerror}") from None


def load_tls(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    """The same files for a connection that is not gRPC's own. Raises ConfigError."""
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.authority)
    except OSError as error:
        raise ConfigError(f"tls: {error.filename or tls.certificate}: {error.strerror or error}") from None
    return context
