"""Takes in a request before anything is parsed: its body, its id, its deadline, its tenant."""

import asyncio
import hashlib
import hmac
import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from aiohttp import web
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.limits import BODY_READ_S, MAX_ID_CHARS

_FREE_CHUNKS = 4096  # HTTP chunks of any size; beyond them a body must average _CHUNK_BYTES a chunk
_CHUNK_BYTES = 1024
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_ID_CHARS}}}")
_TIMEOUT_HEADER = "x-request-timeout-s"
HEADERS = frozenset(("Authorization", "Content-Type", "Content-Encoding", _TIMEOUT_HEADER))  # ever refused


class Tenant(NamedTuple):
    name: str
    salt: bytes  # part of the root of its hash chains: tenants without a shared salt share no block


ANONYMOUS = Tenant("default", b"")


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant as configured. Tenants that name the same salt share cached blocks."""

    name: str
    key_sha256: list[str]  # hex digests of its API keys
    salt: str | None = None  # None: one of its own


class Tenants:
    """Whose key a request carries. Without any tenant every request is anonymous.

    ``most``: requests of each that may be in flight; 0: no bound. ``refused`` hears of those beyond it.
    """

    def __init__(
        self, keys: Sequence[Key], most: int = 0, refused: Callable[[], None] = lambda: None
    ) -> None:
        self._most = most
        self._refused = refused
        self._in_flight: Counter[str] = Counter()
        self._known = [
            (bytes.fromhex(digest), Tenant(key.name, _salt(key))) for key in keys for digest in key.key_sha256
        ]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._known)

    def of(self, authorization: str | None) -> Tenant:
        """Raises BadRequest (401). Every known digest is compared, each in constant time."""
        if not self._known:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise BadRequest("Authorization: expected 'Bearer KEY'", "Authorization", 401)
        digest = hashlib.sha256(key.strip().encode(errors="replace")).digest()
        found = [tenant for known, tenant in self._known if hmac.compare_digest(known, digest)]
        if not found:
            raise BadRequest("Authorization: unknown API key", "Authorization", 401)
        return found[0]

    def enter(self, tenant: Tenant) -> None:
        """A request is in flight until it leaves. Raises Rejected (429)."""
        if self._most and self._in_flight[tenant.name] >= self._most:
            self._refused()
            raise Rejected(f"{self._most} requests of yours are in flight already", status=429)
        self._in_flight[tenant.name] += 1

    def leave(self, tenant: Tenant) -> None:
        self._in_flight[tenant.name] -= 1

    @contextmanager
    def in_flight(self, tenant: Tenant) -> Iterator[None]:
        """A request is in flight for as long as the block lasts. Raises Rejected (429)."""
        self.enter(tenant)
        try:
            yield
        finally:
            self.leave(tenant)

    def named(self, name: str | None) -> Tenant:
        """The tenant of this name, for operators, who need no key; without a name the first one. Raises
        BadRequest (404)."""
        tenants = {tenant.name: tenant for _, tenant in self._known} or {ANONYMOUS.name: ANONYMOUS}
        found = tenants.get(name) if name is not None else next(iter(tenants.values()))
        if found is None:
            raise BadRequest(f"tenant: {name!r} is none of {', '.join(tenants)}", "tenant", 404)
        return found


def request_id(offered: str | None) -> str:
    """The client's id when it is well-formed, else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"req-{secrets.token_hex(12)}"


def timeout_s(request: web.Request, longest: float) -> float:
    """Seconds that the client gives the answer. Raises BadRequest."""
    text = request.headers.get(_TIMEOUT_HEADER)
    if text is None:
        return longest
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadRequest(f"{_TIMEOUT_HEADER}: expected seconds above 0", _TIMEOUT_HEADER)
    return min(seconds, longest)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The JSON body, at most ``limit`` bytes within BODY_READ_S. Raises BadRequest (400, 408, 413, 415)."""
    if request.content_type != "application/json":
        raise BadRequest("Content-Type: expected application/json", "Content-Type", 415)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise BadRequest("Content-Encoding: compressed bodies are refused", "Content-Encoding", 415)
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        if request.content.is_eof():  # all of it came with the headers: no timer is needed
            return await _read(request, limit)
        async with asyncio.timeout(BODY_READ_S):
            return await _read(request, limit)
    except TimeoutError:
        raise BadRequest(f"body: not complete within {BODY_READ_S:g} s", "body", 408) from None
    except web.RequestPayloadError:
        raise BadRequest("body: broken transfer encoding", "body") from None


async def _read(request: web.Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = chunks = 0
    while True:
        data, ends_chunk = await request.content.readchunk()
        if not data and not ends_chunk:
            return b"".join(parts)
        parts.append(data)
        size += len(data)
        chunks += ends_chunk
        if size > limit:
            raise _too_large(limit)
        if chunks > _FREE_CHUNKS + size // _CHUNK_BYTES:
            raise BadRequest(f"body: {chunks} chunks for {size} bytes", "body")


def _too_large(limit: int) -> BadRequest:
    return BadRequest(f"body: more than {limit} bytes", "body", 413)


def _salt(key: Key) -> bytes:
    own = hashlib.sha256(b"warmfleet tenant " + key.name.encode()).digest()[:16]
    return own if key.salt is None else key.salt.encode()
