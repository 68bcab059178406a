"""Why a worker does not give blocks away. A closed set: the reasons label a metric."""

from enum import StrEnum

from warmfleet_proto.errors import BadRequest


class Refusal(StrEnum):
    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    OTHER_SOURCE = "other_source"
    OTHER_TARGET = "other_target"
    OTHER_EPOCH = "other_epoch"  # granted on blocks of an earlier incarnation
    NOT_GRANTED = "not_granted"
    OTHER_TENANT = "other_tenant"  # the key agrees, the root of its chain does not
    OTHER_LAYOUT = "other_layout"
    FULL = "full"  # as many leases or pinned blocks as may be


class Refused(BadRequest):
    """What a peer asked for is not given; ``refusal`` says why, for the count."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message, "grant", 403)
        self.refusal = refusal
