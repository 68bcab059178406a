"""The ring home of the prompt's first tokens, with a bound on load."""

from collections.abc import Sequence

from warmfleet_router.policy.base import Ask, Candidate, Choice, Pool, Terms, nominated, predicted


class PrefixHash:
    """``depth_tokens`` are hashed, or a shorter prompt whole; ``bound`` is over the mean load."""

    name = "prefix_hash"
    pulls = False

    def __init__(self, depth_tokens: int, bound: float) -> None:
        self._depth_tokens = depth_tokens
        self._bound = bound

    def nominate(self, ask: Ask, pool: Pool) -> dict[int, int]:
        blocks = min(self._depth_tokens // ask.block_size, len(ask.keys))
        if not blocks:  # nothing to hash: in turn
            return {pool.workers[ask.ticket % len(pool.workers)].slot: 1}
        home = pool.ring.home(ask.keys[blocks - 1], pool.members, pool.bound(self._bound))
        return {home.slot: 1} if home else {}

    def choose(self, ask: Ask, candidates: Sequence[Candidate]) -> Choice:
        home = nominated(candidates)[0]
        return Choice(home, f"home of the first {min(self._depth_tokens, ask.prompt_tokens)} tokens")

    def terms(self, ask: Ask, candidate: Candidate) -> Terms:
        return predicted(candidate)
