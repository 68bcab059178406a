"""What a gateway asks, checked: nothing in it can surprise the code behind."""

from typing import Final

import msgspec
from warmfleet_proto import hashing
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import (
    KEY_BYTES,
    MAX_CHOICES,
    MAX_ID_CHARS,
    MAX_SALT_BYTES,
    PROMPT_BYTES,
    TOKEN_BYTES,
)

from warmfleet_router.hasher import Hasher

MAX_PROMPT_TOKENS = PROMPT_BYTES // TOKEN_BYTES
MAX_EXCLUDED = 1 << 16  # tried already, or outside of a gateway's subset: most of the largest fleet
NOBODY: Final[frozenset[str]] = frozenset()
_FORGETFUL: Final = Hasher(memo_bytes=0)


class Request(msgspec.Struct, frozen=True):
    """Either ``token_ids`` or ``keys`` is given; the other is empty."""

    request_id: str
    gateway: str
    tenant: str
    model: str
    salt: bytes
    token_ids: bytes
    keys: bytes
    prompt_tokens: int
    max_tokens: int  # 0: whatever fits
    slots: int  # sequences to decode
    exclude: frozenset[str]
    bypass_cache: bool
    hasher: Hasher = _FORGETFUL

    @property
    def context(self) -> int:
        """Tokens that a worker must have room for."""
        return self.prompt_tokens + (self.max_tokens or 1)

    def keys_for(self, fingerprint: bytes, block_size: int) -> bytes:
        """Packed keys of the prompt's full blocks, as workers of this kind hash them."""
        if self.token_ids:
            root = hashing.root_hash(fingerprint, block_size, salt=self.salt)
            return self.hasher.keys(root, self.token_ids, block_size)
        return self.keys[: self.prompt_tokens // block_size * KEY_BYTES]


def checked(request: pb.RouteRequest, hasher: Hasher) -> Request:
    """Raises BadRequest, naming the field and the limit."""
    # Each field is read once: protobuf makes a new string or copy of bytes every time.
    names = request.request_id, request.gateway_id, request.tenant, request.model
    if max(map(len, names)) > MAX_ID_CHARS:
        for field, name in zip(("request_id", "gateway_id", "tenant", "model"), names, strict=True):
            _check_most(f"{field} characters", field, len(name), MAX_ID_CHARS)
    salt, choices, exclude = request.salt, request.choices, request.exclude
    if salt:
        _check_most("salt bytes", "salt", len(salt), MAX_SALT_BYTES)
    if choices:
        _check_most("choices", "choices", choices, MAX_CHOICES)
    if exclude:
        _check_most("excluded workers", "exclude", len(exclude), MAX_EXCLUDED)
    return Request(
        *names,
        salt,
        *_prompt(request),
        request.max_tokens,
        choices or 1,
        frozenset(exclude) if exclude else NOBODY,
        request.bypass_cache,
        hasher,
    )


def _prompt(request: pb.RouteRequest) -> tuple[bytes, bytes, int]:
    keys = request.keys
    match "keys" if keys else request.WhichOneof("prompt"):
        case "token_ids":
            token_ids = request.token_ids
            if not token_ids:
                raise BadRequest("the prompt is empty", "token_ids")
            _check_whole("token_ids", token_ids, TOKEN_BYTES)
            _check_most("prompt bytes", "token_ids", len(token_ids), PROMPT_BYTES)
            tokens = len(token_ids) // TOKEN_BYTES
            if request.prompt_tokens not in (0, tokens):
                raise BadRequest(f"prompt_tokens says {request.prompt_tokens}, not {tokens}", "prompt_tokens")
            return token_ids, b"", tokens
        case "keys":
            tokens = request.prompt_tokens
            _check_whole("keys", keys, KEY_BYTES)
            if not tokens:
                raise BadRequest("prompt_tokens is required with keys", "prompt_tokens")
            _check_most("prompt tokens", "prompt_tokens", tokens, MAX_PROMPT_TOKENS)
            _check_most("keys", "keys", len(keys) // KEY_BYTES, tokens)
            return b"", keys, tokens
        case _:
            raise BadRequest("one of token_ids and keys is required", "token_ids")


def _check_whole(field: str, value: bytes, size: int) -> None:
    if len(value) % size:
        raise BadRequest(f"{field} has {len(value)} bytes, not a multiple of {size}", field)


def _check_most(what: str, field: str, value: int, most: int) -> None:
    if value > most:
        raise BadRequest(f"{value} {what} are more than {most}", field)
