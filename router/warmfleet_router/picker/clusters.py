"""What Envoy knows of servers and of its picker: their addresses, and how it talks to them."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from warmfleet_proto.channel import Tls, split_address

from warmfleet_router.picker.http2 import MAX_STREAMS
from warmfleet_router.picker.replies import CHOICE, ENDPOINT, NAMESPACE
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.catalogue import Place, place_of

TYPES = "type.googleapis.com/envoy.extensions"
PICKER, FLEET, FOUND = "picker", "fleet", "found"

_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MATCH = "envoy.transport_socket_match"
# Of requests under way, each with a stream to the picker. Envoy's own bound of 1,024 would let those beyond
# wait for a connection, or go in turn without a pick; how much a server takes is the router's business.
_MOST = MAX_STREAMS
_BREAKERS = {
    "thresholds": [
        {
            "max_connections": _MOST,
            "max_pending_requests": _MOST,
            "max_requests": _MOST,
            "max_retries": _MOST,  # of a server that is gone all that it would have had go to the next
        }
    ],
}


def fleet(backends: Sequence[Backend], authority: str) -> dict[str, Any]:
    """The cluster of the servers that are listed. ``authority`` is a file of those who sign their https
    certificates."""
    places = [place_of(base) for base in dict.fromkeys(each.base for each in backends)]  # ranks share one
    in_turn = {"@type": f"{TYPES}.load_balancing_policies.round_robin.v3.RoundRobin"}
    source = {"metadata": {"key": NAMESPACE, "path": [{"key": ENDPOINT}]}}
    override = {
        "@type": f"{TYPES}.load_balancing_policies.override_host.v3.OverrideHost",
        "override_host_sources": [source, {"header": ENDPOINT}],
        "fallback_policy": {"policies": [_policy("round_robin", in_turn)]},
    }
    endpoints = [_server(place) for place in places]
    made = _cluster(FLEET, "2s") | {
        "type": "STATIC",
        "load_assignment": {"cluster_name": FLEET, "endpoints": [{"lb_endpoints": endpoints}]},
        "load_balancing_policy": {"policies": [_policy("override_host", override)]},
    }
    if any(is_name(place.host) for place in places):
        made |= {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}  # as the picker does
    if encrypted := dict.fromkeys(place.host for place in places if place.tls):
        made["transport_socket_matches"] = _sockets(encrypted, authority)
    return made


def found() -> dict[str, Any]:
    """Wherever the picker says: servers that come while Envoy runs."""
    key = {"key": NAMESPACE, "path": [{"key": CHOICE}]}
    return _cluster(FOUND, "2s") | {
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"metadata_key": key},
    }


def picker(address: str, tls: Tls | None) -> dict[str, Any]:
    http2: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
    made = _cluster(PICKER, "1s") | {
        "type": "STRICT_DNS",
        "load_assignment": {"cluster_name": PICKER, "endpoints": [{"lb_endpoints": [_endpoint(address)]}]},
        "typed_extension_protocol_options": {_HTTP: {"@type": f"type.googleapis.com/{_HTTP}"} | http2},
    }
    if tls is not None:
        made["transport_socket"] = _tls(split_address(address)[0], tls.authority, tls)
    return made


def is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def address_of(address: str) -> dict[str, Any]:
    host, port = split_address(address)
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, connect: str) -> dict[str, Any]:
    return {"name": name, "connect_timeout": connect, "circuit_breakers": _BREAKERS}


def _policy(name: str, config: dict[str, Any]) -> dict[str, Any]:
    full = f"envoy.load_balancing_policies.{name}"
    return {"typed_extension_config": {"name": full, "typed_config": config}}


def _server(place: Place) -> dict[str, Any]:
    made = _endpoint(place.endpoint)
    made["endpoint"]["hostname"] = place.endpoint  # for Host, where names are used
    if place.tls:
        made["metadata"] = {"filter_metadata": {_MATCH: {"tls": place.host}}}
    return made


def _endpoint(address: str) -> dict[str, Any]:
    return {"endpoint": {"address": address_of(address)}}


def _sockets(hosts: Iterable[str], authority: str) -> list[dict[str, Any]]:
    """How each of ``hosts`` is talked to; those that match none get plain HTTP."""
    return [
        {"name": host, "match": {"tls": host}, "transport_socket": _tls(host, authority)} for host in hosts
    ]


def _tls(host: str, authority: str, own: Tls | None = None) -> dict[str, Any]:
    """TLS as a client of ``host``, whose certificate must name it. ``own`` is what the client shows."""
    kind = "DNS" if is_name(host) else "IP_ADDRESS"
    trusted = {
        "trusted_ca": {"filename": authority},
        "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}],
    }
    common: dict[str, Any] = {"validation_context": trusted}
    if own is not None:
        files = {"certificate_chain": {"filename": own.certificate}, "private_key": {"filename": own.key}}
        common |= {"tls_certificates": [files], "alpn_protocols": ["h2"]}
    context = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common,
    }
    if kind == "DNS":
        context["sni"] = host
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}
