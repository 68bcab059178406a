"""One modelled worker with what surrounds it: its voice, when its step began, its links."""

from warmfleet_router.replay.announcer import Announcer
from warmfleet_router.replay.worker import Worker


class Member:
    def __init__(self, index: int, worker: Worker) -> None:
        self.index = index
        self.address = f"replay:{index}"
        self.worker = worker
        self.announcer = Announcer(worker, epoch=index + 1)
        self.began_at = 0.0  # the step that runs
        self.version = 0  # of the step's end in the queue; older ones are void
        self.sending_until = 0.0  # what its peers pull
        self.loading_until = 0.0  # what comes from its host memory
        self.given_blocks = 0
        self.gone = False  # it has drained and left
