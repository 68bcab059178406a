"""What stored copies of blocks were made with: they are of use to a worker that agrees in all of it."""

import msgspec
from warmfleet_proto.limits import HASH_BYTES

from warmfleet_worker.engine.base import Engine


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str  # its name, for people: the fingerprint decides
    fingerprint: bytes
    layout: bytes  # fingerprint of what ``layout_text`` says
    layout_text: str  # dtype and shape
    block_size: int  # tokens
    block_bytes: int

    @property
    def layout_mark(self) -> bytes:
        """What each copy carries of the layout, 16 bytes."""
        return self.layout[:HASH_BYTES]

    def differs(self, here: "Made") -> str:
        """What keeps copies made with this from being used ``here``; empty when nothing does."""
        if self.fingerprint != here.fingerprint:
            return f"made with model {_named(self, here)}, this worker serves {_named(here, self)}"
        if self.block_size != here.block_size:
            return f"made with blocks of {self.block_size} tokens, this worker has {here.block_size}"
        if self.layout != here.layout or self.block_bytes != here.block_bytes:
            return f"made with layout {self.layout_text}, this worker has {here.layout_text}"
        return ""


def made_with(engine: Engine) -> Made:
    return Made(
        engine.model,
        engine.fingerprint,
        engine.layout,
        engine.layout_text,
        engine.block_size,
        engine.block_bytes,
    )


def _named(one: Made, other: Made) -> str:
    """The fingerprint as well where the names are no help."""
    return repr(one.model) + (f" ({one.fingerprint.hex()[:8]})" if one.model == other.model else "")
