"""Where there is no GPU, Triton's interpreter runs the kernels: to be asked for before they are imported."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it said before ``poisoned``


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to is NaN, or the largest integer: also what a kernel should fill."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
