"""House rules that a machine can watch: sizes of files and functions, and calls that must never appear."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("proto", "router", "worker", "kernels")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "yaml", "jsonpickle", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "recv_pyobj", "os.system"}


def product_files() -> list[Path]:
    return [p for top in PACKAGES for p in (ROOT / top).rglob("*.py") if "_pb2" not in p.name]


def dangers(source: str) -> list[str]:
    """Object deserialisers and evaluators that a module imports or calls."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS or name.endswith(".recv_pyobj"):
                found.append(name)
            if any(k.arg == "shell" and getattr(k.value, "value", False) for k in node.keywords):
                found.append(f"{name}(shell=True)")
    return found


@pytest.mark.parametrize("path", product_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_house_rules(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert dangers(source) == []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize(
    "planted",
    ["import pickle", "from marshal import loads", "eval('1')", "torch.load(f)", "run('x', shell=True)"],
)
def test_scan_sees_what_is_planted(planted: str) -> None:
    assert dangers(planted)


@pytest.mark.parametrize("path", product_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_map_names_every_room(path: Path) -> None:
    names = f"{path.stem}`", f"`{path.parent.name}/`"
    assert path.stem.startswith("__") or any(n in (ROOT / "ARCHITECTURE.md").read_text() for n in names)
