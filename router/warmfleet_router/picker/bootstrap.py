"""A bootstrap for Envoy: its data plane, with the router as the picker of its endpoints.

Where the picker is gone or slow, Envoy takes the next endpoint in turn (``failure_mode_allow``): slower, but
no request is refused. In full duplex Envoy answers 500 instead, whatever is configured. Either way answers
under way go on, and requests are placed again once the picker is back.

In full duplex Envoy (since 1.37) ends its talk with the picker when the answer begins, and so does the load
that is counted for it. Response trailers, if they were asked for, would keep it until the end; but then
answers under way would break off with their picker.
"""

from collections.abc import Sequence
from typing import Any

from warmfleet_proto.channel import split_address

from warmfleet_router.gateway.limits import Limits
from warmfleet_router.picker.http2 import MAX_STREAMS
from warmfleet_router.picker.replies import ENDPOINT, NAMESPACE, SUBSET_NAMESPACE
from warmfleet_router.servers.backend import Backend

_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_PICKER, _FLEET = "picker", "fleet"
# Of requests under way, each with a stream to the picker. Envoy's own bound of 1,024 would let those beyond
# wait for a connection, or go in turn without a pick; how much a server takes is the router's business.
_MOST = MAX_STREAMS
_HEADERS = (":path", ":status", "authorization", "x-request-id")  # that the picker reads
_BREAKERS = {
    "thresholds": [{"max_connections": _MOST, "max_pending_requests": _MOST, "max_requests": _MOST}],
}


def bootstrap(
    listen: str, picker: str, backends: Sequence[Backend], limits: Limits, duplex: bool
) -> dict[str, Any]:
    """As Envoy reads it, in JSON. ``duplex``: bodies are streamed to the picker, not buffered."""
    return {
        "static_resources": {
            "listeners": [_listener(listen, limits, duplex)],
            "clusters": [_fleet(backends), _picker(picker)],
        },
    }


def _listener(listen: str, limits: Limits, duplex: bool) -> dict[str, Any]:
    longest = f"{limits.request_s:g}s"
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": _FLEET,
            "timeout": longest,
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        },
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [_external(duplex), _router()],
        "request_timeout": longest,
        "stream_idle_timeout": "0s",  # it would be set anew for each token; the others hold as long
        "stream_flush_timeout": longest,
    }
    filters = [{"name": "http", "typed_config": manager}]
    return {
        "name": "ingress",
        "address": _address(listen),
        "per_connection_buffer_limit_bytes": limits.body_bytes,
        "filter_chains": [{"filters": filters}],
    }


def _external(duplex: bool) -> dict[str, Any]:
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED" if duplex else "BUFFERED",
        "request_trailer_mode": "SEND" if duplex else "SKIP",
        "response_header_mode": "SEND",
        "response_body_mode": "NONE",  # Python never touches a byte of an answer
        "response_trailer_mode": "SKIP",
    }
    config = {
        "@type": f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": _PICKER}, "timeout": "0s"},
        "processing_mode": mode,
        "failure_mode_allow": not duplex,  # there Envoy refuses all the same
        "message_timeout": "5s",
        "metadata_options": {
            "receiving_namespaces": {"untyped": [NAMESPACE]},
            "forwarding_namespaces": {"untyped": [SUBSET_NAMESPACE]},
        },
        "forward_rules": {"allowed_headers": {"patterns": [{"exact": name} for name in _HEADERS]}},
    }
    return {"name": "picker", "typed_config": config}


def _router() -> dict[str, Any]:
    return {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}}


def _fleet(backends: Sequence[Backend]) -> dict[str, Any]:
    bases = dict.fromkeys(backend.base for backend in backends)  # ranks share one
    endpoints = [_endpoint(base.partition("//")[2]) for base in bases]
    in_turn = {"@type": f"{_TYPES}.load_balancing_policies.round_robin.v3.RoundRobin"}
    source = {"metadata": {"key": NAMESPACE, "path": [{"key": ENDPOINT}]}}
    override = {
        "@type": f"{_TYPES}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": [source, {"header": ENDPOINT}],
        "fallback_policy": {"policies": [_policy("round_robin", in_turn)]},
    }
    return {
        "name": _FLEET,
        "type": "STATIC",
        "connect_timeout": "2s",
        "circuit_breakers": _BREAKERS,
        "load_assignment": {"cluster_name": _FLEET, "endpoints": [{"lb_endpoints": endpoints}]},
        "load_balancing_policy": {"policies": [_policy("override_host", override)]},
    }


def _policy(name: str, config: dict[str, Any]) -> dict[str, Any]:
    full = f"envoy.load_balancing_policies.{name}"
    return {"typed_extension_config": {"name": full, "typed_config": config}}


def _picker(address: str) -> dict[str, Any]:
    http2: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": _PICKER,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "circuit_breakers": _BREAKERS,
        "load_assignment": {
            "cluster_name": _PICKER,
            "endpoints": [{"lb_endpoints": [_endpoint(address)]}],
        },
        "typed_extension_protocol_options": {_HTTP: {"@type": f"type.googleapis.com/{_HTTP}"} | http2},
    }


def _endpoint(address: str) -> dict[str, Any]:
    return {"endpoint": {"address": _address(address)}}


def _address(address: str) -> dict[str, Any]:
    host, port = split_address(address)
    return {"socket_address": {"address": host, "port_value": port}}
