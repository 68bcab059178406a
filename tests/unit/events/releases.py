"""KV events as each generation of vLLM and SGLang publishes them, from their published structs.

A generation is the list of fields that an event has, in order, and whether it is an array or a map.
Both engines leave out what holds its default: trailing fields of an array, any field of a map.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

REQUIRED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id")
_SINCE_GROUPS = (*REQUIRED, "medium", "lora_name", "extra_keys", "group_idx")
_LATEST = (*_SINCE_GROUPS, "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality", "ownership")


@dataclass(frozen=True)
class Release:
    name: str
    stored: tuple[str, ...]
    removed: tuple[str, ...]
    maps: bool = False  # events
    map_batch: bool = False
    rank: str | None = "data_parallel_rank"
    digests: bool = False  # hashes are bytes

    def __str__(self) -> str:
        return self.name

    def batch(self, *events: dict[str, Any], rank: int | None = None) -> bytes:
        packed = [self.event(event) for event in events]
        if self.map_batch:
            named = {"ts": 1.5, "events": packed} | ({self.rank: rank} if rank is not None else {})
            return msgspec.msgpack.encode(named)
        return msgspec.msgpack.encode([1.5, packed, *([rank] if rank is not None and self.rank else [])])

    def event(self, event: dict[str, Any]) -> Any:
        fields = {"BlockStored": self.stored, "BlockRemoved": self.removed}.get(event["type"], ())
        if self.maps:
            required = REQUIRED if event["type"] == "BlockStored" else ("block_hashes",)
            kept = {f: event.get(f) for f in fields if f in required or event.get(f) is not None}
            return {"type": event["type"], **kept}
        values = [event.get(field) for field in fields]
        least = {"BlockStored": len(REQUIRED), "BlockRemoved": 1}.get(event["type"], 0)
        while len(values) > least and values[-1] is None:
            values.pop()
        return [event["type"], *values]


VLLM = [
    Release("vllm-0.9", REQUIRED, ("block_hashes",), rank=None),
    Release("vllm-0.10", REQUIRED, ("block_hashes",)),
    Release("vllm-medium", (*REQUIRED, "medium"), ("block_hashes", "medium")),
    Release("vllm-digests", (*REQUIRED, "medium"), ("block_hashes", "medium"), digests=True),
    Release("vllm-lora", (*REQUIRED, "medium", "lora_name"), ("block_hashes", "medium")),
    Release("vllm-extras", (*REQUIRED, "medium", "lora_name", "extra_keys"), ("block_hashes", "medium")),
    Release("vllm-groups", _SINCE_GROUPS, ("block_hashes", "medium", "group_idx")),
    Release("vllm-0.24", _LATEST[:-2], ("block_hashes", "medium", "group_idx"), maps=True),
    Release(
        "vllm-0.33",
        (*_LATEST, "session_id"),
        ("block_hashes", "medium", "group_idx", "locality", "ownership", "remaining_copy_counts"),
        maps=True,
        map_batch=True,
        digests=True,
    ),
]
SGLANG = [
    Release("sglang-0.4", REQUIRED, ("block_hashes",), rank=None),
    Release("sglang-0.5", (*REQUIRED, "medium"), ("block_hashes", "medium"), rank="attn_dp_rank"),
    Release(
        "sglang-maps",
        (*REQUIRED, "medium", "cache_salt", "session_id"),
        ("block_hashes", "medium"),
        maps=True,
        rank="attn_dp_rank",
    ),
    Release(
        "sglang-lora",
        (*REQUIRED, "medium", "cache_salt", "session_id", "lora_name"),
        ("block_hashes", "medium"),
        maps=True,
        rank="attn_dp_rank",
    ),
]


def stored(hashes: list[Any], parent: Any, tokens: list[Any], size: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        **more,
    }


def removed(hashes: list[Any], **more: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, **more}


CLEARED = {"type": "AllBlocksCleared"}
