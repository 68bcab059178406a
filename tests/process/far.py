"""A link that is far away: ports of one loopback address, forwarded to another, every byte a while later."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

FAR, NEAR = "127.0.0.2", "127.0.0.1"
_CHUNK = 256 << 10


@asynccontextmanager
async def far(ports: Sequence[int], delay_s: float) -> AsyncIterator[str]:
    """The address under which ``ports`` of this host answer, ``delay_s`` away in each direction."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(NEAR, port)
        for source, target in ((reader, back), (there, writer)):
            tasks.add(asyncio.create_task(_forward(source, target, delay_s)))

    servers = [
        await asyncio.start_server(lambda r, w, port=port: serve(port, r, w), FAR, port) for port in ports
    ]
    try:
        yield FAR
    finally:
        for server in servers:
            server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await way.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    return
                target.write(data)
                await target.drain()

    arriving = asyncio.create_task(arrive())
    try:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                way.put_nowait((loop.time() + delay_s, data))
        way.put_nowait((loop.time() + delay_s, b""))
        await arriving
    finally:
        arriving.cancel()
        target.close()
