"""Mutual TLS for data connections, from the files that the gRPC ports use."""

import ssl

from warmfleet_proto.channel import Tls
from warmfleet_proto.settings import ConfigError


def source_context(tls: Tls) -> ssl.SSLContext:
    """For the end that listens. Raises ConfigError."""
    context = _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def target_context(tls: Tls) -> ssl.SSLContext:
    """For the end that connects: it checks the source's name as well. Raises ConfigError."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def _loaded(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.authority)
    except OSError as error:
        raise ConfigError(f"tls: {error.filename or tls.certificate}: {error.strerror or error}") from None
    return context
