"""What placement is up against: one queue in front of workers that share a cache which forgets nothing.

In virtual time, by the modelled worker's own steps. Whoever is free takes the request that has waited for
longest; one whose prefix is being computed waits for that and lets the next pass. Nothing is computed twice
and no worker is idle while another has a queue: what first come, first served can be at best.
"""

import heapq
from itertools import count
from typing import NamedTuple

from warmfleet_router.replay.job import Job
from warmfleet_router.replay.profile import Profile
from warmfleet_router.replay.trace import Request, Trace
from warmfleet_router.replay.turns import Turns
from warmfleet_router.replay.worker import Worker

ROOM = 1 << 22  # blocks


class Pooled(Worker):
    """One of ``peers``, who share queue and cache."""

    def __init__(self, profile: Profile, block_size: int, peers: list["Pooled"]) -> None:
        super().__init__(profile, block_size, ROOM)
        self._peers = peers
        if peers:
            self.cache, self.waiting, self._coming = peers[0].cache, peers[0].waiting, peers[0]._coming
        peers.append(self)

    def _admit(self, now: float) -> None:
        filling = {key for peer in self._peers for job in peer.running for key in _unfilled(job)}
        for job in list(self.waiting):
            if not self._has_room():
                return
            if self._next_key(job) in filling:
                continue
            assert self._take(job, room=len(self.running))
            self.waiting.remove(job)
            self.running.append(job)
            filling.update(_unfilled(job))

    def _has_room(self) -> bool:
        prefill = sum(job.remaining for job in self.running if job.remaining > 1)
        return prefill < self.profile.chunk_tokens and len(self.running) < self.profile.max_running


def _unfilled(job: Job) -> list[int]:
    return job.keys[len(job.nodes) :]


class _Event(NamedTuple):
    at: float
    order: int
    request: Request | None  # that arrives
    worker: int = 0  # or whose step ends, if it is still of that version
    version: int = 0


class Queue:
    """``ttfts``: seconds to the first token, as they come."""

    def __init__(self, profile: Profile, block_size: int, workers: int) -> None:
        self.ttfts: list[float] = []
        self._workers: list[Pooled] = []
        for _ in range(workers):
            Pooled(profile, block_size, self._workers)
        self._began = [0.0] * workers
        self._versions = [0] * workers
        self._events: list[_Event] = []
        self._order = count(1)
        self._turns = Turns()
        self._sent: dict[int, Request] = {}  # by booking

    def run(self, trace: Trace) -> None:
        for request in trace.requests:
            heapq.heappush(self._events, _Event(request.arrival_s, next(self._order), request))
        while self._events:
            event = heapq.heappop(self._events)
            if event.request is not None:
                if self._turns.come(event.request):
                    self._send(event.request, event.at)
            elif event.version == self._versions[event.worker]:
                self._commit(event.worker, event.at)
            self._stir(event.at)

    def _send(self, request: Request, now: float) -> None:
        number, tokens = next(self._order), request.prompt_tokens
        self._sent[number] = request
        self._workers[0].submit(Job(number, request.keys, tokens, request.completion_tokens, now))

    def _commit(self, i: int, now: float) -> None:
        done = self._workers[i].commit(now)
        self.ttfts += [now - job.submitted_at for job in done.started]
        for job in done.ended:
            if following := self._turns.ended(self._sent.pop(job.booking)):
                self._send(following, now)

    def _stir(self, now: float) -> None:
        for i, worker in enumerate(self._workers):
            if not worker.under_way:
                worker.schedule(now)
                self._began[i] = now
                if worker.under_way:
                    self._end_later(i)
            elif worker.waiting and worker.interrupt(now - self._began[i]):
                self._end_later(i)

    def _end_later(self, i: int) -> None:
        self._versions[i] += 1
        at = self._began[i] + self._workers[i].under_way[0].seconds
        heapq.heappush(self._events, _Event(at, next(self._order), None, i, self._versions[i]))
