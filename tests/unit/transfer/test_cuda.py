"""Device memory that another process maps: the cuda transport, on one GPU or two."""

from functools import partial
from typing import Any

import pytest
import torch
from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.transfer_pb2 import Offer
from warmfleet_worker.transfer.device_lanes import DeviceLanes
from warmfleet_worker.transfer.haul import PoolHaul
from warmfleet_worker.transfer.lane import Shape
from warmfleet_worker.transfer.lane_target import LaneTarget
from warmfleet_worker.transfer.slabs import Slabs
from warmfleet_worker.transfer.transport import Fill, Filling

from tests.bars.gpu.giver import Giver, Scattered, fingerprints, memory_of
from tests.unit.transfer.hauls import Collected

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
        lanes.warm_up()
        offer = Offer(transport="cuda", host="-", socket=giver.ask("lanes", SHAPE))
        for _ in range(2):
            pool.words.zero_()
            haul = PoolHaul(pool, None, targets, range(BLOCKS), lambda: None)
            LaneTarget(lanes).pull("", offer, 1, bytes(16), haul)
            assert (haul.arrived, haul.bad) == (BLOCKS, 0)
            assert fingerprints(pool.words, targets) == wanted
            assert not pool.words[0].any()
        lanes.close()
        giver.ask("free")


WRONG, SMALL = 1000, 64  # blocks, and words of each
DAMAGES = ("flipped", "torn", "swapped", "replayed")


class Spoilt(Scattered):
    """Its blocks in the first half of a pool, each spoilt one as far behind it in the other half."""

    def __init__(self, whole: Scattered, damage: str) -> None:
        super().__init__(whole.words, range(WRONG))
        self._with_its_sum = damage in ("swapped", "replayed")
        self._others = [i ^ 1 if damage == "swapped" else 0 if i else 1 for i in range(WRONG)]
        sound, wrong = self.words[:WRONG], self.words[WRONG:]
        if damage == "flipped":
            bits = torch.randint(32 * SMALL, (WRONG, 1), device=sound.device)
            places = torch.arange(SMALL, device=sound.device) == bits // 32
            wrong.copy_(sound ^ torch.where(places, 1 << bits % 32, 0).int())
        elif damage == "torn":
            wrong.copy_(sound)
            wrong[:, SMALL // 2 :] = sound.roll(1, 0)[:, SMALL // 2 :]
        else:
            wrong.copy_(sound[self._others])

    def give(self, first: int, count: int, fill: Fill) -> Filling:
        """With the sums of the right ones, or with those that others have in their own places."""
        numbers = range(first, first + count)
        right = fill(numbers, numbers)()
        theirs = fill([WRONG + n for n in numbers], [self._others[n] for n in numbers])()
        return lambda: theirs if self._with_its_sum else right


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_thousand_damaged_blocks_are_a_thousand_noticed(damage: str) -> None:
    device = torch.device("cuda:0")
    with Giver("cuda:1" if torch.cuda.device_count() > 1 else "cuda:0") as giver:
        giver.ask("pool", 2 * WRONG, SMALL, range(WRONG))
        pool = torch.zeros((WRONG, SMALL), dtype=torch.int32, device=device)
        lanes = DeviceLanes(pool, memory_of(device), SHAPE)
        for outcome in ((WRONG, 0), (0, WRONG)):
            offer = Offer(transport="cuda", host="-", socket=giver.ask("lanes", SHAPE))
            haul = Collected(WRONG, pool[0].nbytes, Slabs(1, 1), keep=False)
            haul.one_by_one()
            LaneTarget(lanes).pull("", offer, 1, bytes(16), haul)
            assert (haul.good, haul.bad) == outcome
            giver.ask("other", partial(Spoilt, damage=damage))
        lanes.close()
        giver.ask("free")


def test_a_handle_that_is_none_is_not_opened() -> None:
    class Nonsense:
        def receive(self, count: int) -> bytes:
            return b"x" * count

    stream: Any = Nonsense()
    with pytest.raises(WorkerLost, match="cannot be mapped"):
        memory_of(torch.device("cuda:0")).open(stream, 1)
