"""Which discovered servers Envoy can reach: it talks to them in the clear, and so would send their keys."""

import logging
from collections.abc import Sequence

from warmfleet_proto.log import event

from warmfleet_router.picker.check import is_https
from warmfleet_router.servers.backend import Backend

_log = logging.getLogger(__name__)


class Plain:
    """Leaves out servers of https, and names each of them once for as long as it is there."""

    def __init__(self) -> None:
        self._left_out: frozenset[str] = frozenset()

    def of(self, backends: Sequence[Backend]) -> tuple[Backend, ...]:
        before = self._left_out
        self._left_out = frozenset(backend.url for backend in backends if is_https(backend))
        if new := sorted(self._left_out - before):
            why = "Envoy talks to discovered servers by plain HTTP; put what ends TLS before these"
            event(_log, "servers left out", level=logging.WARNING, urls=", ".join(new), why=why)
        return tuple(backend for backend in backends if not is_https(backend))
