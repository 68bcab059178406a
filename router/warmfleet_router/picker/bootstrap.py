"""A bootstrap for Envoy: its data plane, with the router as the picker of its endpoints.

Where the picker is gone or slow, Envoy takes the next endpoint in turn (``failure_mode_allow``): slower, but
no request is refused. Not where only the picker can check a client's key, or knows a server's key or path:
there Envoy answers 500, and in full duplex, whatever is configured. Requests are placed again once the picker
is back. Answers under way go on without it, where Envoy needs it only if it has ended in order; in full
duplex Envoy has no more to say to it by then.

In full duplex Envoy (since 1.37) ends its talk with the picker when the answer begins: the load that is
counted for it ends then, or when the first token of a stream is due. Response trailers, if they were asked
for, would keep it until the end; but then answers under way would break off with their picker.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from warmfleet_proto.channel import Tls

from warmfleet_router.gateway.limits import Limits
from warmfleet_router.picker import clusters
from warmfleet_router.picker.clusters import FLEET, FOUND, PICKER, TYPES, address_of
from warmfleet_router.picker.replies import ENDPOINT, NAMESPACE, SUBSET_NAMESPACE
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.catalogue import place_of

_HEADERS = (":path", ":status", "authorization", "content-type", "x-request-id")  # that the picker reads
_OF_ANSWERS = ("content-encoding",)  # where it reads those as well


class Plan(NamedTuple):
    """What Envoy is to know. Files are read by Envoy, where it runs."""

    listen: str
    picker: str
    backends: Sequence[Backend]
    limits: Limits = Limits()
    duplex: bool = False  # bodies are streamed to the picker, not buffered
    tls: Tls | None = None  # to the picker
    authority: str = ""  # that signs certificates of https backends
    found: bool = False  # there are servers beside those that are listed
    tenants: bool = False  # requests without a key are refused
    usage: bool = False  # answers pass the picker, chunk by chunk

    @property
    def needs_picker(self) -> bool:
        """Without it a request would be let in, or get to a server, without what it needs."""
        return self.duplex or self.tenants or any(b.key or place_of(b.base).prefix for b in self.backends)


def bootstrap(plan: Plan) -> dict[str, Any]:
    """The bootstrap as Envoy reads it, to be written as JSON."""
    known = [clusters.fleet(plan.backends, plan.authority), clusters.picker(plan.picker, plan.tls)]
    if plan.found:
        known.append(clusters.found())
    return {"static_resources": {"listeners": [_listener(plan)], "clusters": known}}


def _listener(plan: Plan) -> dict[str, Any]:
    longest = f"{plan.limits.request_s:g}s"
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(plan, longest)}]
        },
        "http_filters": [_external(plan), _router()],
        "request_timeout": longest,
        "stream_idle_timeout": "0s",  # it would be set anew for each token; the others hold as long
        "stream_flush_timeout": longest,
    }
    filters = [{"name": "http", "typed_config": manager}]
    return {
        "name": "ingress",
        "address": address_of(plan.listen),
        "per_connection_buffer_limit_bytes": plan.limits.body_bytes,
        "filter_chains": [{"filters": filters}],
    }


def _routes(plan: Plan, longest: str) -> list[dict[str, Any]]:
    action: dict[str, Any] = {
        "timeout": longest,
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
    }
    listed = action | {"cluster": FLEET}
    if any(clusters.is_name(place_of(backend.base).host) for backend in plan.backends):
        listed["auto_host_rewrite"] = True
    routes: list[dict[str, Any]] = [{"match": {"prefix": "/"}, "route": listed}]
    if plan.found:
        picked = {"prefix": "/", "headers": [{"name": ENDPOINT, "present_match": True}]}
        routes.insert(0, {"match": picked, "route": action | {"cluster": FOUND}})
    return routes


def _external(plan: Plan) -> dict[str, Any]:
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED" if plan.duplex else "BUFFERED",
        "request_trailer_mode": "SEND" if plan.duplex else "SKIP",
        "response_header_mode": "SEND",
        "response_body_mode": "STREAMED"
        if plan.usage
        else "NONE",  # of most answers Python touches no byte then
        "response_trailer_mode": "SKIP",
    }
    read = _HEADERS + (_OF_ANSWERS if plan.usage else ())
    config = {
        "@type": f"{TYPES}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": PICKER}, "timeout": "0s"},
        "processing_mode": mode,
        "allow_mode_override": True,  # it asks for some answers, to time their first token
        "failure_mode_allow": not plan.needs_picker,
        "message_timeout": "5s",
        "metadata_options": {
            "receiving_namespaces": {"untyped": [NAMESPACE]},
            "forwarding_namespaces": {"untyped": [SUBSET_NAMESPACE]},
        },
        "forward_rules": {"allowed_headers": {"patterns": [{"exact": name} for name in read]}},
    }
    return {"name": "picker", "typed_config": config}


def _router() -> dict[str, Any]:
    return {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
