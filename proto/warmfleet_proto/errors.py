"""The four exceptions, named for who must act, and the one table that maps them at the edges."""

import grpc


class WarmfleetError(Exception):
    """Base of the four; never raised itself."""


class BadRequest(WarmfleetError):
    """The caller must change the request. ``field`` names what is wrong with it."""

    def __init__(self, message: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.field = field
        self.status = status  # 400, or the HTTP status that says it better (401, 404, 413, 415)


class Rejected(WarmfleetError):
    """The fleet is full or gone for now: the caller should try again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0, status: int = 503) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status  # 429 when the caller is over its share, 503 when the fleet is


class WorkerLost(WarmfleetError):
    """A worker went away with the request; the operator's business, the caller may retry."""


class Corrupt(WarmfleetError):
    """Bytes did not match their identity; ``peer`` says where they came from."""

    def __init__(self, message: str, peer: str = "") -> None:
        super().__init__(message)
        self.peer = peer


_HTTP: dict[type[WarmfleetError], int] = {BadRequest: 400, Rejected: 503, WorkerLost: 502, Corrupt: 500}
_GRPC: dict[type[WarmfleetError], grpc.StatusCode] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Rejected: grpc.StatusCode.UNAVAILABLE,
    WorkerLost: grpc.StatusCode.ABORTED,
    Corrupt: grpc.StatusCode.DATA_LOSS,
}


def http_status(error: WarmfleetError) -> int:
    if isinstance(error, BadRequest | Rejected):
        return error.status
    return _HTTP[type(error)]


def grpc_status(error: WarmfleetError) -> grpc.StatusCode:
    return _GRPC[type(error)]
