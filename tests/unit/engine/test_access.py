"""Blocks that leave one pool and enter another are the same blocks, on a CPU and on a GPU."""

import numpy as np
import pytest
import torch
from warmfleet_worker.engine.access import access
from warmfleet_worker.engine.sim import SimEngine

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def pool(device: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn((10, 3, 2, 2, 4, 8), dtype=torch.float32).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_move_between_pools(device: str, dtype: torch.dtype) -> None:
    source, target = pool(device, dtype), pool(device, dtype)
    before = target.clone()
    size = source[0].nbytes
    slab = memoryview(bytearray(4 * size + 5))  # longer than what is moved
    access(source).read([7, 2, 9], slab)
    assert bytes(slab[:size]) == source[7].cpu().view(torch.uint8).numpy().tobytes()
    access(target).write([0, 5, 2], slab)
    for to, of in ((0, 7), (5, 2), (2, 9)):
        assert torch.equal(target[to], source[of])
    for block in {*range(10)} - {0, 5, 2}:
        assert torch.equal(target[block], before[block])
    assert bytes(slab[3 * size :]) == bytes(size + 5)


def test_the_sim_engine_moves_them_as_well() -> None:
    source, target = SimEngine(block_size=4, total_blocks=8), SimEngine(block_size=4, total_blocks=8)
    source.pool[:] = np.arange(32).reshape(8, 4)
    slab = memoryview(bytearray(3 * source.block_bytes + 1))
    source.read_blocks([6, 1], slab)
    target.write_blocks([0, 3], slab)
    assert target.pool[0].tolist() == [24, 25, 26, 27]
    assert target.pool[3].tolist() == [4, 5, 6, 7]
    assert not target.pool[[1, 2, 4, 5, 6, 7]].any()
