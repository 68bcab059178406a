"""What a Serve stream still has to write: cancels first, then prompts frame by frame in turn."""

from collections import deque

from warmfleet_proto.limits import FRAME_BYTES
from warmfleet_proto.worker_pb2 import Cancel, PromptFrame, ServeRequest, Submit


class _Upload:
    """A prompt on its way: the Submit carries its first frame, PromptFrames the rest."""

    __slots__ = ("offset", "submit", "token_ids")

    def __init__(self, submit: Submit, token_ids: bytes) -> None:
        self.submit = submit
        self.token_ids = token_ids
        self.offset = 0

    @property
    def begun(self) -> bool:
        return self.offset > 0

    @property
    def finished(self) -> bool:
        return self.offset >= len(self.token_ids)

    def frame(self) -> ServeRequest:
        part = self.token_ids[self.offset : self.offset + FRAME_BYTES]
        first = not self.begun
        self.offset += len(part)
        if first:
            self.submit.token_ids = part
            return ServeRequest(submit=self.submit)
        return ServeRequest(prompt=PromptFrame(handle=self.submit.handle, token_ids=part))


class Outbox:
    """Prompts of several frames take turns, so that a long one does not hold up a short one."""

    def __init__(self) -> None:
        self._cancels: deque[int] = deque()
        self._uploads: deque[_Upload] = deque()

    def submit(self, submit: Submit, token_ids: bytes) -> None:
        """``submit`` without its prompt; ``token_ids`` (packed u32, not empty) is the whole of it."""
        assert token_ids
        assert submit.prompt_tokens
        self._uploads.append(_Upload(submit, token_ids))

    def cancel(self, handle: int) -> None:
        """Forgets what is not written of the request, and tells the worker if it knows of it."""
        upload = next((u for u in self._uploads if u.submit.handle == handle), None)
        if upload is not None:
            self._uploads.remove(upload)
        if upload is None or upload.begun:
            self._cancels.append(handle)

    def pop(self) -> ServeRequest | None:
        """The next message to write, or None."""
        if self._cancels:
            return ServeRequest(cancel=Cancel(handle=self._cancels.popleft()))
        if not self._uploads:
            return None
        upload = self._uploads.popleft()
        frame = upload.frame()
        if not upload.finished:
            self._uploads.append(upload)
        return frame

    def clear(self) -> None:
        """The stream has broken. Cancels are void, since Open lists what is still wanted; prompts are
        submitted again."""
        self._cancels.clear()
        self._uploads.clear()
