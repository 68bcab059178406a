"""How engines put KV events on the wire: msgpack, batches and events each as an array or as a map.

The structs follow vLLM's ``distributed/kv_events.py`` since 0.9 and SGLang's
``disaggregation/kv_events.py``. Fields were only ever added at the end, so one layout an engine
reads all of its releases; what is not known here is skipped. Nothing is decoded that its declared
type and length do not allow: a hostile batch costs a few times its own size.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import Corrupt

from warmfleet_router.events.batch import Batch, Cleared, Event

PAYLOAD_BYTES = 4 << 20  # of one batch: an engine step over 500k tokens
MAX_EVENTS = 16_384
MAX_HASHES = 65_536  # in one event
MAX_TOKENS = 524_288
MAX_RANK = 65_535
NIL = Raw(b"\xc0")

Hash = int | Annotated[bytes, Meta(min_length=8, max_length=64)]
Hashes = Annotated[list[Hash], Meta(max_length=MAX_HASHES)]
TokenId = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Name = Annotated[str, Meta(max_length=512)]
Index = Annotated[int, Meta(ge=0, le=1 << 20)]
_Rank = Annotated[int, Meta(ge=0, le=MAX_RANK)]
_Events = Annotated[list[Raw], Meta(max_length=MAX_EVENTS)]
Copies = Annotated[list[Annotated[int, Meta(ge=0, le=1 << 32)]], Meta(max_length=MAX_HASHES)]

Form = Literal["array", "map"]
Forms = tuple[type[Struct], type[Struct]]  # one as an array, one as a map
Make = Callable[[Any], Event | None]


class _ArrayBatch(Struct, array_like=True):
    ts: float
    events: _Events
    rank: _Rank | None = None


class _MapBatch(Struct):
    ts: float
    events: _Events
    data_parallel_rank: _Rank | None = None  # vLLM's word
    attn_dp_rank: _Rank | None = None  # SGLang's


class _ArrayTag(Struct, array_like=True):
    type: Name


class _MapTag(Struct):
    type: Name


def _decoders(kinds: Forms) -> dict[Form, msgspec.msgpack.Decoder[Any]]:
    return {"array": msgspec.msgpack.Decoder(kinds[0]), "map": msgspec.msgpack.Decoder(kinds[1])}


_batches, _tags = _decoders((_ArrayBatch, _MapBatch)), _decoders((_ArrayTag, _MapTag))


def _split(payload: bytes) -> tuple[int | None, Sequence[Raw]]:
    """The rank and the events of a batch, not decoded yet. Raises Corrupt."""
    if len(payload) > PAYLOAD_BYTES:
        raise Corrupt(f"a batch of {len(payload)} bytes, more than {PAYLOAD_BYTES}")
    form = _form_of(payload)
    batch = _decode(payload, _batches[form], "a batch that is none")
    if form == "array":
        return batch.rank, batch.events
    rank = batch.attn_dp_rank if batch.data_parallel_rank is None else batch.data_parallel_rank
    return rank, batch.events


class Layouts:
    """The layouts, of all releases of an engine, in which it tells of stored and of removed blocks."""

    def __init__(self, stored: Forms, removed: Forms) -> None:
        self._stored, self._removed = _decoders(stored), _decoders(removed)

    def batch(self, payload: bytes, stored: Make, removed: Make) -> Batch:
        """Decodes one message. ``stored`` and ``removed`` make events of the engine's structs; None: this one
        is about something else. Raises Corrupt."""
        rank, packed = _split(payload)
        events = [self._event(event, stored, removed) for event in packed]
        known = [event for event in events if event is not None]
        return Batch(rank, known, len(events) - len(known))

    def _event(self, event: Raw, stored: Make, removed: Make) -> Event | None:
        form = _form_of(event)
        match _decode(event, _tags[form], "an event without a type").type:
            case "BlockStored":
                return stored(_decode(event, self._stored[form], "a malformed event"))
            case "BlockRemoved":
                return removed(_decode(event, self._removed[form], "a malformed event"))
            case "AllBlocksCleared":
                return Cleared()
        return None


def _decode(packed: bytes | Raw, decoder: msgspec.msgpack.Decoder[Any], otherwise: str) -> Any:
    """Raises Corrupt."""
    try:
        return decoder.decode(packed)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Corrupt(f"{otherwise}: {error}") from None


def _form_of(packed: bytes | Raw) -> Form:
    """Raises Corrupt for what is neither an array nor a map."""
    first = memoryview(packed)[:1]
    byte = first[0] if first else 0
    if 0x90 <= byte <= 0x9F or byte in (0xDC, 0xDD):
        return "array"
    if 0x80 <= byte <= 0x8F or byte in (0xDE, 0xDF):
        return "map"
    raise Corrupt(f"neither an array nor a map: msgpack code {byte:#x}")


def number(name: Hash) -> int:
    """64 bits: engines that send numbers send the low ones of their digest, or signed ones."""
    if isinstance(name, bytes):
        return int.from_bytes(name[-8:], "big")
    return name & 0xFFFF_FFFF_FFFF_FFFF


_TIERS = {
    None: pb.DEVICE,
    "GPU": pb.DEVICE,
    "CPU": pb.HOST,
    "CPU_PINNED": pb.HOST,
    "STORAGE": pb.DISK,
    "DISK": pb.DISK,
}


def tier_of(medium: str | None, locality: str | None) -> int | None:
    """None for a place that is not this worker's own."""
    if locality is not None and locality.upper() != "LOCAL":
        return None
    return _TIERS.get(medium.upper() if medium is not None else None)


def is_full_attention(kind: str | None) -> bool:
    """Only such groups keep whole prefixes; a window's or a state's blocks say nothing of one."""
    return kind is None or "full" in kind or kind.startswith("mla")
