"""The sequences that run and those that wait, and how they move between the two: admission, growth,
preemption, forking, leaving. With each move, blocks are taken or given back."""

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable

from warmfleet_proto.hashing import chain

from warmfleet_worker.admission import Limits, admit, fits, readable
from warmfleet_worker.blocks import BlockPool
from warmfleet_worker.fetching import Fetching
from warmfleet_worker.filling import fork
from warmfleet_worker.load import Load, Totals
from warmfleet_worker.prefix import PrefixCache
from warmfleet_worker.sequence import Sequence
from warmfleet_worker.steps import Steps


class Batch:
    def __init__(self, limits: Limits, total_blocks: int, totals: Totals) -> None:
        self.limits = limits
        self.cache = PrefixCache(BlockPool(total_blocks), limits.block_size)
        self.fetching = Fetching(self.cache, limits.block_size)
        self.steps = Steps(self.cache)
        self.running: list[Sequence] = []  # in the order in which they came
        self.waiting: deque[Sequence] = deque()
        self._totals = totals

    def grow(self, now: float) -> bool:
        """Takes a block for every sequence whose next token needs one. If there is none, the newest sequence
        is preempted; but not while steps are under way: then False, and the next step has to wait for
        them."""
        i = 0
        while i < len(self.running):
            sequence = self.running[i]
            full = sequence.planned == len(sequence.blocks) * self.limits.block_size
            if full and sequence.remaining:
                while (taken := self.cache.allocate(1)) is None:
                    if self.steps:
                        return False
                    newest = self.running[-1]
                    self.preempt(newest, now)
                    if newest is sequence:
                        return True
                sequence.blocks += taken
            i += 1
        return True

    def look(self, now: float) -> None:
        """Fetches what waiting sequences lack, where that takes less time than computing it."""
        if self.fetching.supplies:
            self.fetching.expire(now)
            for sequence in self.waiting:
                self.fetching.look(sequence, len(self.running), now)

    def admit(self, now: float) -> None:
        """Starts waiting sequences, in the order in which they came, while there are blocks, slots and prompt
        tokens of the step for them. Those that wait for a fetch are passed over.

        One that has waited for its fetch runs before a long prompt that came after it and was begun
        meanwhile.
        """
        if not self.waiting:
            return
        prompts = [s for s in self.running if s.remaining > 1]
        slots = self.limits.max_running - sum(len(s.choices) for s in self.running)
        filling = self.steps.filling(self.limits.block_size)
        while (sequence := self._next()) and _ahead(sequence, prompts) < self.limits.chunk_tokens:
            if len(sequence.choices) > slots or (filling and self._next_block(sequence) in filling):
                return
            if self._look_again(sequence, now):
                continue
            if not admit(sequence, self.cache, self.limits, room=len(self.running)):
                return
            self._start(sequence, now)
            slots -= len(sequence.choices)
            prompts.append(sequence)
        if not prompts and sequence is None:
            self._race(slots, now)

    def _look_again(self, sequence: Sequence, now: float) -> bool:
        fetching, room = self.fetching, len(self.running)
        fit = fetching.lacks(sequence) and fits(sequence, self.cache, self.limits, room)
        return fetching.look_again(sequence, room, now, fit)

    def _race(self, slots: int, now: float) -> None:
        """No other prompt needs the engine: one that waits for a fetch may compute the front of it."""
        fetching, chunk = self.fetching, self.limits.chunk_tokens
        fetching.next_race = math.inf
        if fetching.pace.token_s is None:
            return
        for sequence in self.waiting if fetching.busy else ():
            at = fetching.race_at(sequence, chunk * fetching.pace.token_s, bool(self.running))
            if at > now:
                fetching.next_race = min(fetching.next_race, at)
            elif len(sequence.choices) <= slots and admit(
                sequence, self.cache, self.limits, room=len(self.running) + 1
            ):
                fetching.race(sequence)
                self._start(sequence, now)
                return

    def _start(self, sequence: Sequence, now: float) -> None:
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_arrival)
        self.fetching.admitted(sequence)
        self._note_admission(sequence, now)

    def catch_up(self, now: float) -> None:
        """Sequences that compute the front of what is fetched for them go on with what has come."""
        for sequence, source, tokens in self.fetching.catch_up(self.steps.release, now):
            request = sequence.request
            if not request.started:
                request.cached_tokens += tokens
                request.brought[source] += tokens
                self._totals.cached_tokens += tokens
                self._totals.brought[source] += tokens

    def _next(self) -> Sequence | None:
        for sequence in self.waiting:
            if not sequence.waits and (sequence.looked or not self.fetching.busy):
                return sequence
        return None

    def _next_block(self, sequence: Sequence) -> bytes | None:
        """Hash of the block after its readable prefix. While a step under way fills that block, the sequence
        waits: else it would compute the block again."""
        matched = len(readable(sequence, self.cache))
        return sequence.hashes[matched] if matched < len(sequence.hashes) else None

    def preempt(self, sequence: Sequence, now: float) -> None:
        """It gives its blocks up and waits again, before all others. The blocks stay cached until they are
        displaced; what has been by then is computed anew."""
        self.running.remove(sequence)
        self.fetching.left(sequence, now)
        self._release(sequence)
        if not sequence.request.started:
            sequence.request.prompt_logprobs = []  # all of them will be scored again
        token_ids = sequence.token_ids.tobytes()
        sequence.hashes = chain(sequence.request.root, token_ids, self.limits.block_size)
        sequence.looked = sequence.tried = False
        sequence.losses = 0
        self.waiting.appendleft(sequence)
        self._totals.preemptions += 1

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """One sequence a choice; the new ones run beside the first."""
        forks = fork(sequence, self.cache, self.limits.block_size)
        sequence.request.live = list(forks)
        at = self.running.index(sequence) + 1
        self.running[at:at] = forks[1:]
        return forks

    def leave(self, sequence: Sequence, now: float) -> None:
        """It has ended. Its full blocks stay cached."""
        if sequence.blocks:
            self.running.remove(sequence)
            self.fetching.left(sequence, now)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
            self.fetching.admitted(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.steps.release(sequence.held)
        sequence.forget_blocks()

    def _note_admission(self, sequence: Sequence, now: float) -> None:
        request = sequence.request
        if request.admitted is None:  # what is found again after a preemption is not a hit
            request.admitted = now
            request.cached_tokens = left = sequence.computed
            for source, tokens in request.brought.items():  # some may have been displaced meanwhile
                request.brought[source] = min(tokens, left)
                left -= request.brought[source]
            self._totals.brought += request.brought
            self._totals.prompt_tokens += sequence.prompt_tokens
            self._totals.cached_tokens += sequence.computed

    def load(self) -> Load:
        pool = self.cache.pool
        waiting = sum(s.uncomputed if s.request.started else s.request.uncached for s in self.waiting)
        return Load(
            running=len(self.running),
            waiting=len(self.waiting),
            prefill_tokens=waiting + sum(s.uncomputed for s in self.running if s.uncomputed > 1),
            context_tokens=sum(s.computed for s in self.running),
            free_blocks=pool.free,
            cached_blocks=pool.cached,
            pinned_blocks=pool.pinned,
            wanted_blocks=len(self.cache.wanted),
            evictions_total=self.cache.evictions,
            late_hits_total=self.cache.late_hits,
        )

    def check_integrity(self, lent: Iterable[int] = ()) -> None:
        """Raises AssertionError when blocks and sequences disagree. ``lent``: blocks pinned for peers."""
        self.cache.check_integrity()
        pool = self.cache.pool
        held = {block for sequence in self.running for block in sequence.held} | {*lent}
        held |= {*self.fetching.held, *self.steps.retired}
        assert held == {block for block in range(pool.total) if pool.is_pinned(block)}
        assert not any(sequence.held for sequence in self.waiting)


def _arrival(sequence: Sequence) -> int:
    return sequence.request.number


def _ahead(sequence: Sequence, prompts: Iterable[Sequence]) -> int:
    """Tokens of ``prompts`` that are computed before its own."""
    number = sequence.request.number
    return sum([each.remaining for each in prompts if each.request.number < number])
