"""Where blocks come from that are not computed."""

from enum import IntEnum


class Source(IntEnum):
    """Host and disk are numbered as their tiers."""

    HOST = 2
    DISK = 3
    PEER = 4
