"""The fleet's own workers as a backend: one Connection an address, made when it is first needed."""

import asyncio
import itertools
from collections.abc import Callable

from warmfleet_proto.channel import Tls
from warmfleet_proto.worker_pb2 import Submit

from warmfleet_router.backends.attempt import Attempt
from warmfleet_router.backends.connection import Connection


class WorkerPool:
    """All of one gateway's Serve streams. ``gateway_id`` names it to the workers."""

    def __init__(self, gateway_id: str, tls: Tls | None = None) -> None:
        self._gateway_id = gateway_id
        self._tls = tls
        self._handles = itertools.count(1)
        self._connections: dict[str, Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def submit(
        self,
        address: str,
        submit: Submit,
        token_ids: bytes,
        on_overrun: Callable[[], None] = lambda: None,
    ) -> Attempt:
        """Sends a request to the worker at ``address`` and returns its answer to iterate over.

        ``submit`` comes without handle and prompt; ``token_ids`` is the whole prompt, packed u32.
        ``on_overrun`` is called when the reader falls STREAM_BACKLOG_BYTES behind and is cancelled.
        """
        connection = self._connections.get(address)
        if connection is None:
            self._prune()
            connection = Connection(address, self._gateway_id, self._handles, self._tls)
            self._connections[address] = connection
        return connection.submit(submit, token_ids, on_overrun)

    def _prune(self) -> None:
        """Workers come and go: addresses without a stream are let go before a new one is added."""
        for address in [a for a, c in self._connections.items() if c.idle]:
            task = asyncio.create_task(self._connections.pop(address).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends every stream; what still waits fails with WorkerLost."""
        connections, self._connections = self._connections, {}
        await asyncio.gather(*(c.close() for c in connections.values()), *self._closing)
