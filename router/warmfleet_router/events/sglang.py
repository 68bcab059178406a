"""SGLang's KV events: vLLM's first layout, and fields of its own since.

Under EAGLE it hashes pairs of neighbouring tokens and sends them so: the first of each pair is the
token. A salt is told with every block of its prompt, and only in the map form; so is an adapter's name, by
releases of 2026. Before them an adapter's blocks look like those of the model itself.
"""

from typing import Annotated

from msgspec import Meta, Struct

from warmfleet_router.events import wire
from warmfleet_router.events.batch import Batch, Removed, Stored

_Token = wire.TokenId | Annotated[list[wire.TokenId], Meta(min_length=1, max_length=2)]


class _Fields(Struct):
    block_hashes: wire.Hashes
    parent_block_hash: wire.Hash | None
    token_ids: Annotated[list[_Token], Meta(max_length=wire.MAX_TOKENS)]
    block_size: wire.Index
    lora_id: int | None = None
    medium: wire.Name | None = None


class _Stored(_Fields, tag="BlockStored"):
    cache_salt: wire.Name | None = None
    lora_name: wire.Name | None = None


class _StoredArray(_Fields, array_like=True, tag="BlockStored"):
    pass


class _Gone(Struct):
    block_hashes: wire.Hashes
    medium: wire.Name | None = None


class _Removed(_Gone, tag="BlockRemoved"):
    pass


class _RemovedArray(_Gone, array_like=True, tag="BlockRemoved"):
    pass


_layouts = wire.Layouts((_StoredArray, _Stored), (_RemovedArray, _Removed))


class Decoder:
    def batch(self, payload: bytes) -> Batch:
        """Raises Corrupt."""
        return _layouts.batch(payload, _stored, _removed)


def _stored(fields: _Fields) -> Stored | None:
    tier = wire.tier_of(fields.medium, None)
    if tier is None:
        return None
    named = fields if isinstance(fields, _Stored) else None
    adapter = (named.lora_name if named else None) or ("" if fields.lora_id is None else str(fields.lora_id))
    return Stored(
        tier,
        [wire.number(name) for name in fields.block_hashes],
        None if fields.parent_block_hash is None else wire.number(fields.parent_block_hash),
        [token if isinstance(token, int) else token[0] for token in fields.token_ids],
        fields.block_size,
        adapter,
        (named.cache_salt if named else None) or "",
        (),
    )


def _removed(fields: _Gone) -> Removed | None:
    tier = wire.tier_of(fields.medium, None)
    return None if tier is None else Removed(tier, [wire.number(name) for name in fields.block_hashes], None)
