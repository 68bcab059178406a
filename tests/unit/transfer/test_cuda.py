"""Device memory that another process maps: the cuda transport, on one GPU or two."""

from typing import Any

import pytest
import torch
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.lane import Shape
from warmfleet_worker.transfer.lane_target import LaneTarget

from tests.bars.gpu.giver import Giver, Scattered, fingerprints, memory_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS, WORDS = 64, 64 << 10
SHAPE = Shape(2, 8 * 4 * WORDS)


def test_blocks_of_another_process_arrive_and_go_on_arriving() -> None:
    """Twice over the same lane: it is mapped once."""
    device = torch.device("cuda:0")
    with Giver("cuda:1" if torch.cuda.device_count() > 1 else "cuda:0") as giver:
        numbers, targets = list(range(BLOCKS - 1, -1, -1)), list(range(1, BLOCKS + 1))
        wanted = giver.ask("pool", BLOCKS, WORDS, numbers)
        pool: Any = Scattered(torch.zeros((BLOCKS + 1, WORDS), dtype=torch.int32, device=device), targets)
        lanes = DeviceLanes(pool.words, memory_of(device), SHAPE)
        offer = Offer(transport="cuda", host="-", socket=giver.ask("lanes", SHAPE, True))
        for _ in range(2):
            pool.words.zero_()
            haul = PoolHaul(pool, None, targets, range(BLOCKS), lambda: None)
            LaneTarget(lanes).pull("", offer, 1, bytes(16), haul)
            assert (haul.arrived, haul.bad) == (BLOCKS, 0)
            assert fingerprints(pool.words, targets) == wanted
            assert not pool.words[0].any()
        lanes.close()
        giver.ask("free")


def test_a_handle_that_is_none_is_not_opened() -> None:
    class Nonsense:
        def receive(self, count: int) -> bytes:
            return b"x" * count

    stream: Any = Nonsense()
    with pytest.raises(WorkerLost, match="cannot be mapped"):
        memory_of(torch.device("cuda:0")).open(stream, 1)
