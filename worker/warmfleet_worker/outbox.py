"""What waits to be written to one Serve stream. Bounded: a stream further behind is broken off.

What waits together travels as one message, and of each choice as one output: a message costs its gateway
far more than the tokens in it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from warmfleet_proto.limits import MESSAGE_BYTES
from warmfleet_proto.worker_pb2 import Output, ServeResponse

BACKLOG_BYTES = 2 * MESSAGE_BYTES
_FRAMING_BYTES = 16  # of an output within its message, and more than that
_JOINED_BYTES = 4096  # of token ids in an output that others are joined to


class Outbox:
    def __init__(self) -> None:
        self._outputs: deque[Output] = deque()
        self._latest: dict[tuple[int, int], Output] = {}  # that waits, by handle and choice
        self._bytes = 0  # put since nothing waited, less what went
        self._filled = asyncio.Event()
        self._closed = False
        self.broken = asyncio.Event()  # the stream has to end at once
        self.why = ""

    def put(self, outputs: Sequence[Output]) -> None:
        """What a step made. Afterwards the outputs belong to the box."""
        if self._closed:
            return
        for output in outputs:
            self._bytes += output.ByteSize() + _FRAMING_BYTES
            self._add(output)
        if self._bytes > BACKLOG_BYTES:
            self.break_off(f"the gateway is {BACKLOG_BYTES} bytes behind")
        self._filled.set()

    async def get(self) -> ServeResponse | None:
        """All that waits, or as much as fits; None when there is no more and the box is closed."""
        while not self._outputs:
            if self._closed:
                return None
            self._filled.clear()
            await self._filled.wait()
        response, size = ServeResponse(), 0
        while self._outputs:
            size += self._outputs[0].ByteSize() + _FRAMING_BYTES
            if response.outputs and size > MESSAGE_BYTES:
                break
            output = self._outputs.popleft()
            self._latest.pop((output.handle, output.choice), None)
            response.outputs.append(output)
        self._bytes = self._bytes - size if self._outputs else 0
        return response

    def close(self) -> None:
        """The stream ends when everything has been written."""
        self._closed = True
        self._filled.set()

    def break_off(self, why: str) -> None:
        """The stream ends now; what was not written can be had by reattaching."""
        self._outputs.clear()
        self._latest.clear()
        self.close()
        self.why = self.why or why
        self.broken.set()

    def _add(self, output: Output) -> None:
        key = (output.handle, output.choice)
        waiting = self._latest.get(key)
        if waiting is not None and _joins(waiting):
            _join(waiting, output)
        else:
            self._latest[key] = output
            self._outputs.append(output)


def _joins(waiting: Output) -> bool:
    """One that is large already stays as it is: an output has to fit into a message."""
    return len(waiting.token_ids) < _JOINED_BYTES and not waiting.prompt_logprobs


def _join(waiting: Output, output: Output) -> None:
    """``output`` follows what waits of the same choice."""
    token_ids, position = waiting.token_ids + output.token_ids, waiting.position
    waiting.MergeFrom(output)
    waiting.token_ids, waiting.position = token_ids, position
