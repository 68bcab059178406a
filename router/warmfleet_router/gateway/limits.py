"""Bounds that an operator may move."""

from typing import Annotated

import msgspec
from msgspec import Meta
from warmfleet_proto.limits import BODY_BYTES


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = BODY_BYTES
    in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 4096  # requests in one gateway
    # Of one tenant, by HTTP and by Envoy, in one process: N of them (gateways, their processes, routers) let
    # in N times as many. 0: no bound. Without tenants all requests are one's.
    tenant_in_flight: Annotated[int, Meta(ge=0, le=100_000)] = 0
    request_s: Annotated[float, Meta(gt=0, le=86_400)] = 3600.0  # longest answer; clients may ask for less
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0  # on SIGTERM
