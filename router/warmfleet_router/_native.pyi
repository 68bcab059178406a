"""The native presence, hashing and inner loops have the definitions' interface."""

from collections.abc import Container, Sequence

from warmfleet_router.fleet.worker import Worker
from warmfleet_router.index.index_python import Presence as Presence
from warmfleet_router.offers_python import nearest as nearest
from warmfleet_router.offers_python import offers as offers

def linked(parent: bytes, token_ids: bytes, size: int) -> bytes: ...
def homes(
    points: Sequence[int],
    owners: Sequence[Worker],
    keys: Sequence[int],
    members: Container[Worker],
    most: float,
) -> list[Worker | None]: ...
