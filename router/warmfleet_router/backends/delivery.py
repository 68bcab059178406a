"""What of an attempt's outputs is new: each choice's positions 0..n-1 once, then one ending."""

from warmfleet_proto.errors import WorkerLost
from warmfleet_proto.limits import TOKEN_BYTES
from warmfleet_proto.worker_pb2 import Output


class Delivery:
    """One request's choices. After a break a worker repeats outputs; this drops what was seen."""

    __slots__ = ("_ended", "_next", "_unended", "started")

    def __init__(self, choices: int) -> None:
        self._next = [0] * choices
        self._ended = [False] * choices
        self._unended = choices
        self.started = False  # something was delivered: the attempt can no longer be made again

    @property
    def next_positions(self) -> list[int]:
        """Completion tokens delivered, one count a choice."""
        return list(self._next)

    @property
    def done(self) -> bool:
        return self._unended == 0

    def accept(self, output: Output) -> Output | None:
        """``output`` less what was delivered before; None when nothing of it is new.

        Raises WorkerLost when it cannot follow what was delivered: a choice that was not asked for,
        a gap, or an ending before tokens already seen.
        """
        choice = output.choice
        if choice >= len(self._next):
            raise WorkerLost(f"worker answered choice {choice} of {len(self._next)}")
        if self._ended[choice]:
            return None
        ends = output.HasField("ending")
        seen = self._next[choice] - output.position
        count = len(output.token_ids) // TOKEN_BYTES
        if seen < 0 or (ends and seen > count):
            raise WorkerLost(f"worker answered position {output.position} after {self._next[choice]} tokens")
        follows = seen == 0 and output.position > 0  # the common case: nothing in it can be old
        fresh = output if follows or not self.started else _unseen(output, min(seen, count))
        if fresh is None:
            return None
        self.started = True
        self._next[choice] += count - min(seen, count)
        if ends:
            self._ended[choice] = True
            self._unended -= 1
        return fresh


def _unseen(output: Output, seen: int) -> Output | None:
    """``output`` without its first ``seen`` tokens and without what comes only with the first output."""
    repeats_start = output.HasField("started") or bool(output.prompt_logprobs)
    fresh = output
    if seen or repeats_start:
        fresh = Output()
        fresh.CopyFrom(output)
        fresh.position += seen
        fresh.token_ids = output.token_ids[seen * TOKEN_BYTES :]
        del fresh.logprobs[:seen]
        fresh.ClearField("started")
        fresh.ClearField("prompt_logprobs")
    return fresh if fresh.token_ids or fresh.HasField("ending") else None
