"""How a gateway asks the router: one interface, in process or over gRPC."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

import grpc
from warmfleet_proto import router_pb2 as pb
from warmfleet_proto import router_pb2_grpc
from warmfleet_proto.errors import BadRequest, Corrupt, Rejected, WarmfleetError, WorkerLost
from warmfleet_proto.hashing import root_hash
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES

from warmfleet_router.core import RouterCore
from warmfleet_router.hasher import Hasher

CALL_TIMEOUT_S = 5.0
AT_ONCE_BYTES = 64 << 10  # of token ids; longer prompts are hashed with pauses
PIECES = 32  # between pauses: a millisecond, or a sixth of one where hashing is native

# Trailing metadata that carries what an error knows beyond its code and message.
FIELD = "warmfleet-field"
STATUS = "warmfleet-status"
RETRY_AFTER = "warmfleet-retry-after"

T = TypeVar("T")
Report = pb.ProgressRequest | pb.FinishRequest


class Away(Rejected):
    """The router could not be asked."""


class Router(Protocol):
    """Every method raises BadRequest or Rejected as the router decides, and Away for one out of reach.

    Requests to place are given away: their token ids, megabytes at worst, make room for the keys.
    """

    @property
    def books_at_once(self) -> bool:
        """Nothing comes between a booking and the end of ``route``: whoever stops waiting has none."""

    async def route(self, request: pb.RouteRequest) -> pb.Placement: ...
    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse: ...
    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse: ...
    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse: ...
    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse: ...
    async def explain(self, request: pb.RouteRequest) -> pb.Explanation: ...

    def tell(self, report: Report) -> Coroutine[Any, Any, object] | None:
        """Hands over a report whose answer nobody needs. None if the router has taken it at once; else what
        is to be awaited."""


class LocalRouter:
    """The router in this process. ``clock`` is monotonic seconds, the same that feeds the core elsewhere."""

    books_at_once = True

    def __init__(self, core: RouterCore, clock: Callable[[], float]) -> None:
        self._core = core
        self._clock = clock

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        if len(request.token_ids) > AT_ONCE_BYTES:  # else the core hashes it at once
            await self._hash(request)
        return self._core.route(request, self._clock())

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        return self._core.progress(request, self._clock())

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        return self._core.finish(request, self._clock())

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return self._core.heartbeat(request, self._clock())

    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        return self._core.list_workers(request, self._clock())

    async def explain(self, request: pb.RouteRequest) -> pb.Explanation:
        if len(request.token_ids) > AT_ONCE_BYTES:
            await self._hash(request)
        return self._core.explain(request, self._clock())

    def tell(self, report: Report) -> None:
        if isinstance(report, pb.ProgressRequest):
            self._core.progress(report, self._clock())
        else:
            self._core.finish(report, self._clock())

    async def _hash(self, request: pb.RouteRequest) -> None:
        token_ids = request.token_ids
        if len(token_ids) <= PROMPT_BYTES:
            groups = self._core.roster.models.get(request.model, ())
            await _hash(
                request, token_ids, [(g.fingerprint, g.block_size) for g in groups], self._core.hasher
            )


class RemoteRouter:
    """The router at the other end of ``channel``; the caller closes the channel.

    Token ids leave as keys, an eighth of their size, once ``list_workers`` has told how the model's
    workers hash; a model whose workers differ in that is hashed by the router.
    """

    books_at_once = False

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = router_pb2_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
        self._kinds: dict[str, set[tuple[bytes, int]]] = {}  # by model: fingerprints and block sizes
        self._hasher = Hasher()

    async def route(self, request: pb.RouteRequest) -> pb.Placement:
        await self._hash(request)
        return await _translated(self._stub.Route(request, timeout=CALL_TIMEOUT_S))

    async def progress(self, request: pb.ProgressRequest) -> pb.ProgressResponse:
        return await _translated(self._stub.Progress(request, timeout=CALL_TIMEOUT_S))

    async def finish(self, request: pb.FinishRequest) -> pb.FinishResponse:
        return await _translated(self._stub.Finish(request, timeout=CALL_TIMEOUT_S))

    async def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        return await _translated(self._stub.Heartbeat(request, timeout=CALL_TIMEOUT_S))

    async def list_workers(self, request: pb.ListWorkersRequest) -> pb.ListWorkersResponse:
        answer: pb.ListWorkersResponse = await _translated(
            self._stub.ListWorkers(request, timeout=CALL_TIMEOUT_S)
        )
        self._kinds = _kinds(answer)
        return answer

    async def explain(self, request: pb.RouteRequest) -> pb.Explanation:
        await self._hash(request)
        return await _translated(self._stub.Explain(request, timeout=CALL_TIMEOUT_S))

    def tell(self, report: Report) -> Coroutine[Any, Any, object]:
        return self.progress(report) if isinstance(report, pb.ProgressRequest) else self.finish(report)

    async def _hash(self, request: pb.RouteRequest) -> None:
        kinds = self._kinds.get(request.model, ())
        if len(kinds) == 1:
            await _hash(request, request.token_ids, kinds, self._hasher)


async def _hash(
    request: pb.RouteRequest, token_ids: bytes, kinds: Collection[tuple[bytes, int]], hasher: Hasher
) -> None:
    """Puts keys in the place of token ids, where all workers are of one kind. Pauses for others' turns.

    Of several kinds the hasher knows the prompt afterwards; what is malformed stays as it is.
    """
    tokens, rest = divmod(len(token_ids), TOKEN_BYTES)
    if not tokens or rest or request.prompt_tokens not in (0, tokens):
        return
    chains = []
    for fingerprint, block_size in kinds:
        root = root_hash(fingerprint, block_size, salt=request.salt)
        chains.append(await _with_pauses(hasher.pieces(root, token_ids, block_size)))
    if len(chains) == 1:
        request.keys = b"".join(chains[0])
        request.prompt_tokens = tokens


def _kinds(answer: pb.ListWorkersResponse) -> dict[str, set[tuple[bytes, int]]]:
    kinds: dict[str, set[tuple[bytes, int]]] = {}
    for worker in answer.workers:
        if worker.block_size:  # it has told who it is
            for model in (worker.model, *worker.models):
                kinds.setdefault(model, set()).add((worker.model_fingerprint, worker.block_size))
    return kinds


async def _with_pauses(pieces: Iterable[T]) -> list[T]:
    """All of them; others get their turn in between."""
    made = []
    for piece in pieces:
        made.append(piece)
        if len(made) % PIECES == 0:
            await asyncio.sleep(0)
    return made


async def _translated(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_status(error) from None


def from_status(error: grpc.aio.AioRpcError) -> WarmfleetError:
    """The exception that the other end raised, or Away when it could not be asked."""
    metadata: Any = error.trailing_metadata() or ()
    known = {str(key): str(value) for key, value in metadata}
    message = error.details() or "the router did not answer"
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return BadRequest(message, known.get(FIELD), int(known.get(STATUS, "400")))
        case grpc.StatusCode.ABORTED:
            return WorkerLost(message)
        case grpc.StatusCode.DATA_LOSS:
            return Corrupt(message)
        case grpc.StatusCode.UNAVAILABLE if RETRY_AFTER in known:
            return Rejected(message, float(known[RETRY_AFTER]), int(known.get(STATUS, "503")))
        case code:
            return Away(f"the router cannot be asked ({code.name.lower()}): {message}")
