"""Small tables on their way to a device."""

import torch
from warmfleet_kernels.packing import ALIGNED, pack


def test_every_part_is_aligned_and_whole() -> None:
    parts = [torch.arange(5, dtype=torch.int32), torch.rand(2, 3), torch.zeros(0, dtype=torch.int32)]
    parts.append(torch.arange(8, dtype=torch.int32))
    packed = pack(parts)
    assert packed.sizes == [8, 8, 0, 8]
    assert all(size % ALIGNED == 0 for size in packed.sizes)
    for part, words in zip(parts, torch.split(packed.words, packed.sizes), strict=True):
        assert torch.equal(words[: part.numel()].view(part.dtype).view(part.shape), part)
