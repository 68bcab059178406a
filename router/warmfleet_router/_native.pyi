"""The native presence, hashing and inner loops have the definitions' interface."""

from warmfleet_router.index.index_python import Presence as Presence
from warmfleet_router.offers_python import nearest as nearest
from warmfleet_router.offers_python import offers as offers

def linked(parent: bytes, token_ids: bytes, size: int) -> bytes: ...
