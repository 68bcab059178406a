"""Where weights come from: a folder or a file that gives a configuration and tensors by name."""

from typing import Protocol

from torch import Tensor

from warmfleet_worker.models.config import ModelConfig


class Source(Protocol):
    """Tensors go by their Hugging Face names and layout, whatever the file calls them."""

    @property
    def path(self) -> str: ...
    @property
    def config(self) -> ModelConfig: ...

    def tensor(self, name: str) -> Tensor:
        """The tensor in a float dtype, on the CPU. Raises ConfigError when it is absent or unreadable."""

    def digests(self) -> dict[str, str]:
        """SHA-256 (hex) of every tensor as stored: dtype, shape and bytes, by the file's own names."""
