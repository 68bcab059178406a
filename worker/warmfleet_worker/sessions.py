"""Gateways and what they wait for. A session outlives its stream by REATTACH_S, no longer."""

import asyncio
from collections import deque
from collections.abc import Sequence

from warmfleet_proto.errors import BadRequest, Rejected, WarmfleetError
from warmfleet_proto.limits import FRAME_BYTES, PROMPT_BYTES, REATTACH_S
from warmfleet_proto.worker_pb2 import Open, PromptFrame, Submit
from warmfleet_proto.worker_pb2 import Output as WireOutput

from warmfleet_worker import wire
from warmfleet_worker.outbox import Outbox
from warmfleet_worker.runner import Runner
from warmfleet_worker.sequence import Ending, Key, Output, Reason
from warmfleet_worker.submission import Submission
from warmfleet_worker.transcript import Transcript

MAX_SESSIONS = 256
_INCOMING_BYTES = 8 * PROMPT_BYTES  # of prompts that are still arriving, a session
_KEPT_ENDED = 8192  # transcripts of ended requests, a session


class Session:
    """One gateway: its live and lately ended requests, and the stream that it reads now."""

    def __init__(self, gateway: str, runner: Runner) -> None:
        self.gateway = gateway
        self.outbox: Outbox | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._runner = runner
        self._transcripts: dict[int, Transcript] = {}
        self._ended: deque[tuple[float, int]] = deque()  # (when, handle)
        self._incoming: dict[int, Submission] = {}
        self._incoming_bytes = 0
        self._last_handle = 0

    def open(self, opening: Open, outbox: Outbox) -> None:
        """Tells again what the gateway still waits for, and drops what it does not list."""
        self.detach("another stream of this gateway was opened")
        self.outbox = outbox
        listed = {each.handle: list(each.next_positions) for each in opening.reattach}
        for handle in list(self._transcripts):
            if handle not in listed:
                self.cancel(handle)
                del self._transcripts[handle]
        for handle, positions in listed.items():
            transcript = self._transcripts.get(handle)
            if transcript is None:
                self._send(_unknown(handle, positions))
            elif outputs := transcript.repeat(positions):
                self._send(outputs)

    def submit(self, submit: Submit) -> None:
        handle = submit.handle
        try:
            if handle <= self._last_handle:
                raise BadRequest(f"handle {handle} is not above {self._last_handle}, the last one", "handle")
            self._last_handle = handle
            submission = Submission(submit, self._runner.engine, self._runner.scheduler.limits)
            if not submission.complete:
                self._await_frames(handle, submission)
        except WarmfleetError as error:
            self._refuse(handle, _ending(error))
            return
        self._admit_complete(handle, submission)

    def add(self, frame: PromptFrame) -> None:
        """Frames of a request that was refused or cancelled meanwhile are dropped."""
        submission = self._incoming.get(frame.handle)
        if submission is None:
            return
        try:
            submission.add(frame.token_ids)
        except BadRequest as error:
            self._forget_incoming(frame.handle)
            self._refuse(frame.handle, _ending(error))
            return
        self._admit_complete(frame.handle, submission)

    def cancel(self, handle: int) -> None:
        """Live: it ends at the next step boundary. Still arriving: at once. Ended: nothing."""
        if self._forget_incoming(handle):
            self._refuse(handle, Ending(Reason.CANCELLED))
        self._runner.drop(Key(self.gateway, handle), Ending(Reason.CANCELLED))

    def deliver(self, outputs: list[Output]) -> None:
        """What a step made for this gateway, as one message."""
        now = self._runner.now()
        messages = []
        for output in outputs:
            handle = output.request.key.handle
            if transcript := self._transcripts.get(handle):
                messages.append(transcript.add(output))
                if transcript.ended:
                    self._ended.append((now, handle))
        self._forget_ended(now)
        if self.outbox is not None and messages:
            self.outbox.put(messages)

    def detach(self, why: str) -> None:
        """The stream is gone: what had not arrived completely cannot be completed."""
        for handle in list(self._incoming):
            self._forget_incoming(handle)
        if self.outbox is not None:
            self.outbox.break_off(why)
            self.outbox = None
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None

    def end(self) -> None:
        """Nobody came back."""
        for handle in list(self._transcripts):
            self._runner.drop(Key(self.gateway, handle), Ending(Reason.CANCELLED))

    def _admit_complete(self, handle: int, submission: Submission) -> None:
        if not submission.complete:
            return
        self._forget_incoming(handle)
        try:
            self._runner.submit(submission.request(self.gateway, self._runner.now()))
        except WarmfleetError as error:
            self._refuse(handle, _ending(error))
            return
        self._transcripts[handle] = Transcript(handle, submission.params.choices)

    def _await_frames(self, handle: int, submission: Submission) -> None:
        """Raises Rejected."""
        if self._incoming_bytes + _kept_bytes(submission) > _INCOMING_BYTES:
            raise Rejected("too many prompts are arriving at once")
        self._incoming[handle] = submission
        self._incoming_bytes += _kept_bytes(submission)

    def _forget_incoming(self, handle: int) -> bool:
        submission = self._incoming.pop(handle, None)
        if submission is not None:
            self._incoming_bytes -= _kept_bytes(submission)
        return submission is not None

    def _forget_ended(self, now: float) -> None:
        while self._ended and (len(self._ended) > _KEPT_ENDED or self._ended[0][0] < now - REATTACH_S):
            self._transcripts.pop(self._ended.popleft()[1], None)

    def _refuse(self, handle: int, ending: Ending) -> None:
        """Ends all choices of a request that has no transcript."""
        self._send([WireOutput(handle=handle, ending=wire.ending(ending))])

    def _send(self, outputs: Sequence[WireOutput]) -> None:
        if self.outbox is not None:
            self.outbox.put(outputs)


class Sessions:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._sessions: dict[str, Session] = {}

    def attach(self, opening: Open) -> tuple[Session, Outbox]:
        """Raises Rejected when there are too many gateways."""
        gateway = opening.gateway_id
        session = self._sessions.get(gateway)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                raise Rejected(f"{MAX_SESSIONS} gateways are connected: no more are served")
            session = self._sessions[gateway] = Session(gateway, self._runner)
            self._runner.sinks[gateway] = session.deliver
        outbox = Outbox()
        session.open(opening, outbox)
        return session, outbox

    def detach(self, session: Session, outbox: Outbox) -> None:
        """The stream of ``outbox`` has ended; the session's clock runs unless another took over."""
        if session.outbox is not None and session.outbox is not outbox:
            return
        session.detach("the stream ended")
        loop = asyncio.get_running_loop()
        session.expiry = loop.call_later(REATTACH_S, self._expire, session)

    def close(self) -> None:
        """Every stream ends when what is ready has been written."""
        for session in self._sessions.values():
            if session.outbox is not None:
                session.outbox.close()

    def _expire(self, session: Session) -> None:
        session.end()
        del self._sessions[session.gateway]
        del self._runner.sinks[session.gateway]


def _kept_bytes(submission: Submission) -> int:
    """A Submit takes memory of its own, however short its prompt: one frame, which a gateway would have sent
    with it."""
    return max(submission.size, FRAME_BYTES)


def _unknown(handle: int, positions: Sequence[int]) -> list[WireOutput]:
    ending = wire.ending(Ending(Reason.FAILED, "the worker does not know this request"))
    return [
        WireOutput(handle=handle, choice=choice, position=position, ending=ending)
        for choice, position in enumerate(positions or [0])
    ]


def _ending(error: WarmfleetError) -> Ending:
    reason = Reason.BAD_REQUEST if isinstance(error, BadRequest) else Reason.REJECTED
    return Ending(reason, str(error))
