"""Tasks of asyncio that nobody needs any more."""

import asyncio
from typing import Any


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks, and waits until each of them has ended, however it did."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
