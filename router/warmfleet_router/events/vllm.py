"""vLLM's KV events, 0.9 to 0.33: arrays until 0.23, maps since; hashes as numbers or as digests.

A block's extra keys are, in this order: the adapter's name, multimodal items, the cache salt (first
block of a prompt only), digests of prompt embeddings. Several groups of layers report the same
blocks: the first group of full attention speaks for all.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto.errors import Corrupt

from warmfleet_router.events import wire
from warmfleet_router.events.batch import Batch, Removed, Stored


class _Fields(Struct):
    block_hashes: wire.Hashes
    parent_block_hash: wire.Hash | None
    token_ids: Annotated[list[wire.TokenId], Meta(max_length=wire.MAX_TOKENS)]
    block_size: wire.Index
    lora_id: int | None = None
    medium: wire.Name | None = None  # 0.11
    lora_name: wire.Name | None = None
    extra_keys: Raw = wire.NIL
    group_idx: wire.Index | None = None
    kv_cache_spec_kind: wire.Name | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: wire.Name | None = None


class _Stored(_Fields, tag="BlockStored"):
    pass


class _StoredArray(_Fields, array_like=True, tag="BlockStored"):
    pass


class _Gone(Struct):
    block_hashes: wire.Hashes
    medium: wire.Name | None = None
    group_idx: wire.Index | None = None


class _Removed(_Gone, tag="BlockRemoved"):
    locality: wire.Name | None = None
    remaining_copy_counts: wire.Copies | None = None


class _RemovedArray(_Gone, array_like=True, tag="BlockRemoved"):
    pass  # what follows depends on the release


_layouts = wire.Layouts((_StoredArray, _Stored), (_RemovedArray, _Removed))

_EXTRA_BYTES = 256 << 10  # of one event's extra keys that are looked into


class Decoder:
    """One publisher's batches in order: which group of layers speaks is learned from them."""

    def __init__(self) -> None:
        self._group: int | None = None

    def batch(self, payload: bytes) -> Batch:
        """Raises Corrupt."""
        return _layouts.batch(payload, self._stored, self._removed)

    def _stored(self, fields: _Fields) -> Stored | None:
        tier = wire.tier_of(fields.medium, fields.locality)
        if tier is None or not wire.is_full_attention(fields.kv_cache_spec_kind):
            return None
        if not self._speaks(fields.group_idx):
            return None
        adapter = fields.lora_name or ("" if fields.lora_id is None else str(fields.lora_id))
        first = fields.parent_block_hash is None
        names = (adapter, fields.lora_id)
        salt, extras = _extras(fields.extra_keys, len(fields.block_hashes), names, first)
        return Stored(
            tier,
            [wire.number(name) for name in fields.block_hashes],
            None if fields.parent_block_hash is None else wire.number(fields.parent_block_hash),
            fields.token_ids,
            fields.block_size,
            adapter,
            salt,
            extras,
        )

    def _removed(self, fields: _Gone) -> Removed | None:
        named = fields if isinstance(fields, _Removed) else None
        tier = wire.tier_of(fields.medium, named.locality if named else None)
        if tier is None or (fields.group_idx or 0) != (self._group or 0):
            return None
        copies = named.remaining_copy_counts if named else None
        if copies is not None and len(copies) != len(fields.block_hashes):
            raise Corrupt(f"{len(copies)} copy counts for {len(fields.block_hashes)} blocks")
        return Removed(tier, [wire.number(name) for name in fields.block_hashes], copies)

    def _speaks(self, group: int | None) -> bool:
        if self._group is None:
            self._group = group
        return group is None or group == self._group


def _extras(
    packed: Raw, blocks: int, adapter: tuple[str, int | None], first: bool
) -> tuple[str, list[bytes]]:
    """The salt, and what else each block depends on; ``adapter`` goes by either name."""
    if packed == wire.NIL:
        return "", []
    items = _items(bytes(packed))
    if items is None:
        return "", [bytes(packed)] * blocks  # equal to itself alone
    if len(items) != blocks:
        raise Corrupt(f"extra keys of {len(items)} blocks for {blocks}")
    salt = ""
    rest = [[item for item in keys or () if item not in adapter] for keys in items]
    if first and rest and (texts := [item for item in rest[0] if isinstance(item, str)]):
        salt = texts[-1]
        rest[0].remove(salt)
    return salt, [msgspec.msgpack.encode(keys) if keys else b"" for keys in rest]


def _items(packed: bytes) -> list[list[Any] | None] | None:
    """A block's keys each; None for a shape that is not known yet."""
    if len(packed) > _EXTRA_BYTES:
        return None
    try:
        items = msgspec.msgpack.decode(packed)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    known = isinstance(items, list) and all(keys is None or isinstance(keys, list) for keys in items)
    return items if known else None
