"""The lines of a decision log: one JSON object each, ``k`` says which. Written and read by these structs.

Times (``t``) are seconds on the router's monotonic clock, lengths tokens unless the name says blocks.
Workers go by their address. Keys are the 8-byte index keys, packed and in base64.
"""

from typing import Any

import msgspec

VERSION = 1


class Line(msgspec.Struct, tag_field="k", omit_defaults=True):
    """A line that says nothing needs no place in the file."""


class Begin(Line, tag="begin"):
    """The first line of each file. ``part`` 0 is where a router began: empty books, an unknown fleet."""

    version: int
    run: str  # one a router's life: when it began, UTC
    part: int
    policy: str
    routing: dict[str, Any]
    seed: int


class Added(Line, tag="added"):
    """An address is watched from now on."""

    worker: str


class Removed(Line, tag="removed"):
    t: float
    worker: str


class Joined(Line, tag="joined"):
    """It has told who it is: the fields of its Status."""

    t: float
    worker: str
    status: dict[str, Any]


class Broken(Line, tag="broken"):
    """Its stream broke."""

    t: float
    worker: str


class Change(msgspec.Struct, array_like=True, omit_defaults=True):
    """Presence, as the cursor gave it to the index: ``op`` is +, - or c (all of it is gone)."""

    op: str
    tier: int = 0
    depth: int = 0
    keys: bytes = b""


class Heard(Line, tag="kv"):
    """One message of a worker. ``open``: other things happened before its rest was taken in."""

    t: float
    worker: str
    epoch: int
    load: dict[str, Any] | None = None
    changes: list[Change] = []
    open: bool = False


class More(Line, tag="more"):
    """The rest of a worker's open message."""

    worker: str
    changes: list[Change] = []
    open: bool = False


class Chain(msgspec.Struct, omit_defaults=True):
    """A prompt's keys for one kind of workers: the first ``shared`` of an earlier chain, then ``keys``."""

    kind: str
    keys: bytes = b""
    after: int = 0  # which chain of this file, counted from 0
    shared: int = 0  # blocks


class Asked(msgspec.Struct, omit_defaults=True):
    """What a gateway asked."""

    prompt_tokens: int
    model: str
    chains: list[Chain] = []
    id: str = ""
    gateway: str = ""
    tenant: str = ""
    max_tokens: int = 0
    slots: int = 1
    exclude: list[str] = []
    bypass_cache: bool = False


class Placed(Line, tag="placed"):
    """``available``, ``expected``: overlap in the fleet and at the chosen worker. Terms in seconds."""

    t: float
    asked: Asked
    booking: int
    worker: str
    name: str
    reason: str
    terms: dict[str, float]
    available: int
    expected: int
    ttft: float  # predicted
    pull: tuple[str, int, int] | None = None  # source, from which token, how many


class Explained(Line, tag="explained"):
    """A dry run: its lookup refreshed what it found in the index."""

    t: float
    asked: Asked


class First(Line, tag="first"):
    """The fields of a ProgressRequest (booking, cached_tokens, queue_s, prefill_s, ttft_s)."""

    t: float
    progress: dict[str, Any]


class Ended(Line, tag="ended"):
    """The fields of a FinishRequest (booking, outcome, completion_tokens, cached_tokens, e2e_s)."""

    t: float
    finish: dict[str, Any]


class Beat(Line, tag="beat"):
    """A gateway's heartbeat; ``live`` only where it ended bookings that it no longer held."""

    t: float
    gateway: str
    live: list[int] | None = None


class Ticked(Line, tag="tick"):
    """The clock's ticks, of which many come in a row."""

    t: list[float]


class Brought(Line, tag="brought"):
    """What came of an order to bring a prefix: the fields of a Pulled; none where it was not taken."""

    t: float
    order: int
    pulled: dict[str, Any] | None = None


class Swept(Line, tag="swept"):
    budget: int


class Lost(Line, tag="lost"):
    """So many lines could not be written. What follows no longer tells the whole."""

    lines: int


AnyLine = (
    Begin | Added | Removed | Joined | Broken | Heard | More | Placed | Explained | First | Ended | Beat
    | Ticked | Brought | Swept | Lost
)  # fmt: skip

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyLine).decode
