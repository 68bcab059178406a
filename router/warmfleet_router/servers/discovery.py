"""What a server tells of itself over HTTP: its model, its cache, its load."""

import hashlib
from typing import Any, NamedTuple

import aiohttp
import msgspec
from warmfleet_proto import worker_pb2 as pb
from warmfleet_proto.errors import WorkerLost

from warmfleet_router.fleet.roster import MAX_MODELS, MAX_NAME_CHARS
from warmfleet_router.servers import text
from warmfleet_router.servers.backend import Backend
from warmfleet_router.servers.figures import Figures, read

TIMEOUT_S = 2.0
HEALTH_S = 0.5
MAX_ANSWER_BYTES = 4 << 20
HEALTH_LOOKS = 4  # one of so many asks for /health beside /metrics: SGLang generates a token for it
UNTOLD_CONTEXT = 1 << 20  # of a server that does not tell: it refuses by itself
_MOST = 1 << 30
_NAME_BYTES = 48  # of a model, in a fingerprint


class Names(NamedTuple):
    """What a server answers to."""

    model: str
    others: list[str]
    adapters: list[str]  # of those
    context: int  # tokens; 0: it does not tell


class Probe:
    """One server. Every method raises WorkerLost when it does not answer as it should."""

    def __init__(self, backend: Backend, session: aiohttp.ClientSession) -> None:
        self._backend = backend
        self._session = session
        self._has_metrics = True
        self._has_health = True
        self._looks = 0  # at its load, since it was last well
        self.silent = False  # it shows its models alone, and has not answered the latest question in time

    async def status(self, epoch: int) -> pb.StatusResponse:
        """Who it is. Without events it is keyed on text, where nothing better is known."""
        self._has_metrics = self._has_health = True  # another one may answer there by now
        self._looks = 0
        names = await self.names()
        figures = await self.figures()
        info = await self._info() if self._backend.kind == "sglang" else {}
        page = 0 if self._backend.events else text.BLOCK_TOKENS  # of a token each would be many to no use
        block_size = figures.block_size or max(_whole(info.get("page_size")), page) or text.BLOCK_TOKENS
        tokens = figures.tokens or _whole(info.get("max_total_num_tokens"))
        blocks = self._backend.blocks or figures.blocks or tokens // block_size
        context = names.context or _whole(info.get("context_length"))
        return pb.StatusResponse(
            worker=self._backend.address.partition("//")[2],
            epoch=epoch,
            model=names.model,
            model_fingerprint=b"served as " + _short(names.model.encode()),
            models=names.others,
            adapters=names.adapters,
            block_size=block_size,
            total_blocks=blocks,
            max_context=context or UNTOLD_CONTEXT,
            engine=self._backend.kind,
            silent=not self._backend.events,
            anonymous_load=True,
            silence_s=SILENCE_S,
        )

    async def figures(self) -> Figures:
        """Its load; nothing but its being there where it has no /metrics. Metrics may be well where the
        engine is not: health is asked for beside them."""
        if self._has_metrics:
            answer = await self._get("/metrics")
            if answer is not None:
                await self._check_health()
                return read(answer.decode(errors="replace"), self._backend.rank)
            self._has_metrics = False
        if self._has_health:
            if await self._get("/health") is not None:
                return Figures()
            self._has_health = False
        await self.names()
        return Figures()

    async def _check_health(self) -> None:
        """It has answered just now: silence here is a busy engine."""
        due, self._looks = self._looks % HEALTH_LOOKS == 0, self._looks + 1
        if not (self._has_health and due):
            return
        try:
            status, _ = await self._answer("/health", HEALTH_S)
        except WorkerLost:
            return
        if status >= 500 and status != 501:
            self._looks = 0  # at the next look again
            raise _answers(status, "/health")
        self._has_health = status == 200

    async def names(self, known: str = "") -> Names:
        """The first model is its own, or the ``known`` one while it is there: the latest may come first.
        What names it as its parent is an adapter over it.

        Behind an address that is no engine, other names are other models: their KV is not the first's.
        """
        models = _object(await self._get("/v1/models")).get("data")
        named = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
        named = [m for m in named if isinstance(m.get("id"), str) and m["id"]]
        if not named:
            raise WorkerLost("its /v1/models names no model")
        named.sort(key=lambda m: m["id"] != known or bool(m.get("parent")))
        first, *others = named[:MAX_MODELS]
        adapters = [m["id"] for m in others if m.get("parent") or self._backend.kind == "openai"]
        others_ids = [m["id"] for m in others if len(m["id"]) <= MAX_NAME_CHARS]
        return Names(first["id"], others_ids, adapters, _whole(first.get("max_model_len")))

    async def _info(self) -> dict[str, Any]:
        return _object(await self._get("/get_server_info"))

    async def _get(self, path: str) -> bytes | None:
        """None where there is no such page."""
        status, body = await self._answer(path)
        if status in (404, 405, 501):
            return None
        if status != 200:
            raise _answers(status, path)
        return body

    async def _answer(self, path: str, within_s: float = TIMEOUT_S) -> tuple[int, bytes]:
        """Its status and body."""
        timeout = aiohttp.ClientTimeout(total=within_s)
        url, self.silent = self._backend.base + path, False
        try:
            asked = self._session.get(
                url, headers=self._backend.headers, timeout=timeout, allow_redirects=False
            )
            async with asked as response:
                return response.status, await read_at_most(response.content, MAX_ANSWER_BYTES)
        except TimeoutError:
            self.silent = not self._has_metrics and not self._has_health
            raise WorkerLost(f"no answer to {path} within {within_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WorkerLost(f"{path}: {str(error)[:200] or type(error).__name__}") from None


def _answers(status: int, path: str) -> WorkerLost:
    return WorkerLost(f"it answers {status} to {path}")


SILENCE_S = 5.0  # a server that is not heard of for so long is taken to be stuck


async def read_at_most(content: aiohttp.StreamReader, limit: int) -> bytes:
    """Raises WorkerLost for more."""
    parts, size = [], 0
    async for part in content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise WorkerLost(f"the server's answer exceeds {limit} bytes")
    return b"".join(parts)


def _object(answer: bytes | None) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(answer or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _short(name: bytes) -> bytes:
    """Itself where it fits: names that are paths begin alike."""
    return name if len(name) <= _NAME_BYTES else hashlib.sha256(name).digest()


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value <= _MOST else 0
