"""Mutual TLS for data connections, from the files that the gRPC ports use."""

import ssl

from warmfleet_proto.channel import Tls, load_tls


def source_context(tls: Tls) -> ssl.SSLContext:
    """TLS for the end that listens. Raises ConfigError."""
    context = _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def target_context(tls: Tls) -> ssl.SSLContext:
    """TLS for the end that connects: it checks the source's name as well. Raises ConfigError."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def _loaded(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return load_tls(context, tls)
