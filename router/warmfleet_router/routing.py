"""How placements are made: the settings that an operator may change."""

from typing import Annotated, Literal

import msgspec

from warmfleet_router.policy.base import Policy
from warmfleet_router.policy.cheapest import Cheapest
from warmfleet_router.policy.dynamo_cost import DynamoCost
from warmfleet_router.policy.least_loaded import LeastLoaded
from warmfleet_router.policy.prefix_hash import PrefixHash
from warmfleet_router.policy.round_robin import RoundRobin
from warmfleet_router.policy.sglang_threshold import SglangThreshold
from warmfleet_router.policy.two_choices import TwoChoices

PolicyName = Literal[
    "cheapest", "dynamo_cost", "least_loaded", "prefix_hash", "round_robin", "sglang_threshold", "two_choices"
]


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    policy: PolicyName = "cheapest"
    # cheapest: what added work costs the requests after it, in units of itself; adaptive: by the traffic.
    externality: Annotated[float, msgspec.Meta(ge=0, le=1000)] | Literal["adaptive"] = "adaptive"
    # cheapest: workers may be told to pull blocks from their peers where that is cheaper than computing them.
    pulls: bool = True
    # cheapest: copies of prefixes in demand are brought ahead of requests, and what a draining worker holds
    # of them is saved: of so many bytes a second and worker at most, and so many in all from one that drains.
    replicate: bool = True
    replicate_bytes_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1e9
    evacuate_bytes: Annotated[float, msgspec.Meta(ge=0, le=1e15)] = 64e9
    # What a link between two workers is expected to carry until it has been measured; 0: unknown.
    link_bytes_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # prefix_hash: tokens that are hashed.
    prefix_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1024
    # A ring home with more in flight than this times the mean passes the request on.
    load_bound: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.25
    # sglang_threshold: the longest queue may be above the shortest by this many requests, and times this;
    # the share of a prompt that must match. Defaults of sglang-router 0.3.2.
    balance_abs: Annotated[int, msgspec.Meta(ge=0)] = 64
    balance_rel: Annotated[float, msgspec.Meta(ge=1)] = 1.5
    cache_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    # dynamo_cost: of blocks to compute over blocks in use. Dynamo's default.
    overlap_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    # Blocks that the index of each model holds at most.
    index_blocks: Annotated[int, msgspec.Meta(ge=1, le=1 << 29)] = 1_000_000


def make_policy(routing: Routing, seed: int) -> Policy:
    match routing.policy:
        case "cheapest":
            constant = None if routing.externality == "adaptive" else routing.externality
            return Cheapest(constant, routing.load_bound, routing.pulls)
        case "dynamo_cost":
            return DynamoCost(routing.overlap_weight)
        case "least_loaded":
            return LeastLoaded()
        case "prefix_hash":
            return PrefixHash(routing.prefix_tokens, routing.load_bound)
        case "round_robin":
            return RoundRobin()
        case "sglang_threshold":
            return SglangThreshold(routing.balance_abs, routing.balance_rel, routing.cache_threshold)
        case "two_choices":
            return TwoChoices(seed)
