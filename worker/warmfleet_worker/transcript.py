"""What one request has been told so far, so that a gateway can be told again after a break."""

from array import array

from warmfleet_proto.worker_pb2 import Output as WireOutput
from warmfleet_proto.worker_pb2 import Started, TokenLogprobs

from warmfleet_worker import wire
from warmfleet_worker.sequence import Ending, Output


class _Choice:
    __slots__ = ("ending", "logprobs", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("I")
        self.logprobs: list[TokenLogprobs] = []
        self.ending: Ending | None = None


class Transcript:
    def __init__(self, handle: int, choices: int) -> None:
        self._handle = handle
        self._choices = [_Choice() for _ in range(choices)]
        self._live = choices
        self._started: Started | None = None
        self._first_choice = 0  # whose output carries Started
        self._prompt_logprobs: list[TokenLogprobs] = []

    @property
    def ended(self) -> bool:
        return self._live == 0

    def add(self, output: Output) -> WireOutput:
        """Remembers an output; returns it as it travels."""
        message = wire.output(output)
        choice = self._choices[output.choice]
        choice.token_ids.extend(output.token_ids)
        if output.logprobs:
            choice.logprobs.extend(message.logprobs)
        if output.started:
            self._started = message.started
            self._first_choice = output.choice
            self._prompt_logprobs = list(message.prompt_logprobs)
        if output.ending:
            choice.ending = output.ending
            self._live -= 1
        return message

    def repeat(self, next_positions: list[int]) -> list[WireOutput]:
        """One output a choice with all from its position on. A missing position counts as 0."""
        outputs = []
        for index, choice in enumerate(self._choices):
            position = next_positions[index] if index < len(next_positions) else 0
            position = min(position, len(choice.token_ids))
            message = WireOutput(
                handle=self._handle,
                choice=index,
                position=position,
                token_ids=choice.token_ids[position:].tobytes(),
                logprobs=choice.logprobs[position:],
                ending=wire.ending(choice.ending) if choice.ending else None,
            )
            if index == self._first_choice and position == 0 and self._started is not None:
                message.started.CopyFrom(self._started)
                message.prompt_logprobs.extend(self._prompt_logprobs)
            if message.token_ids or message.HasField("ending") or message.HasField("started"):
                outputs.append(message)
        return outputs
