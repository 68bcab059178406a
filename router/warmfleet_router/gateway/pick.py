"""A placement that somebody else carries out, and what is heard of how it went."""

import asyncio

from warmfleet_proto.router_pb2 import FinishRequest, Placement, ProgressRequest

from warmfleet_router.gateway.placing import Upstream
from warmfleet_router.servers import sse

Header = tuple[str, str | None]  # name and value; without one it is taken away

_BEFORE_FIRST = ("wait", "bring", "prefill")  # what a first token takes, of a price's terms


class Pick:
    """A placement whose request somebody else carries out: its load is let go when they say that it ended."""

    def __init__(self, upstream: Upstream, placement: Placement, body: bytes) -> None:
        self.endpoints: list[str] = []  # IP:PORT; the first is the choice
        self.prefix = ""  # of the path there
        self.headers: tuple[Header, ...] = ()  # that the request is to be sent with
        self.body = body
        self.keyed_on_text = False  # what it finds cached says nothing of events
        self.ends_with_usage = False  # a stream: whoever asked for it
        self.hide_usage = False  # from the client: it was asked for here
        self._upstream = upstream
        self._booking = placement.booking
        self._began = upstream.clock()
        self._due_s = sum(term.seconds for term in placement.terms if term.name in _BEFORE_FIRST)
        self._ttft_s = 0.0

    def answering(self) -> None:
        """Its response has begun."""
        if not self._ttft_s:
            self._ttft_s = self._upstream.clock() - self._began
            progress = ProgressRequest(booking=self._booking, ttft_s=self._ttft_s, cached_later=True)
            self._upstream.reports.progress(progress)

    def unseen(self) -> None:
        """Nothing more will be told of a stream that has begun: it counts until its first token is due."""
        left_s = max(self._began + self._due_s - self._upstream.clock(), 0.0)
        asyncio.get_running_loop().call_later(left_s, self.ended, 200, None, None)

    def ended(self, status: int, usage: sse.Usage | None, error: BaseException | None) -> None:
        """Once; repeats do nothing. Without a response (``status`` 0) it says nothing about the server."""
        booking, self._booking = self._booking, 0
        if not booking:
            return
        outcome = FinishRequest.DROPPED if status >= 500 else FinishRequest.IGNORE
        usage = usage or sse.Usage()
        cached = usage.cached_tokens
        report = FinishRequest(
            booking=booking,
            outcome=FinishRequest.OK if status == 200 and error is None else outcome,
            completion_tokens=sse.counted(usage.completion_tokens),
            cached_tokens=sse.counted(cached),
            cached_known=cached is not None,
            keyed_on_text=self.keyed_on_text,
            prompt_tokens=sse.counted(usage.prompt_tokens),
            ttft_s=self._ttft_s,
            e2e_s=self._upstream.clock() - self._began,
        )
        self._upstream.reports.finish(report)
