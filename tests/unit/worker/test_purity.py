"""The rooms that simulation and replay run without a shell: no clock, no chance, no I/O of their own."""

import ast
from pathlib import Path

import pytest
import warmfleet_worker

ROOM = Path(warmfleet_worker.__file__).parent
PURE = [
    "admission",
    "batch",
    "blocks",
    "drawn",
    "events",
    "filling",
    "load",
    "openai_ask",
    "prefix",
    "scheduler",
    "sequence",
    "submission",
    "transcript",
    "wire",
    "engine/base",
    "engine/sim",
]
SHELL = {"asyncio", "grpc", "aiohttp", "time", "random", "os", "socket", "threading"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_shell(name: str) -> None:
    tree = ast.parse((ROOM / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module.split(".")[0] for module in imported} & SHELL
