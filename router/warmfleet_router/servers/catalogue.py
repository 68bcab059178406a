"""Which models the servers that are not ours serve, and what each of them is."""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from warmfleet_proto.router_pb2 import ListWorkersResponse

ENGINES = ("vllm", "sglang", "openai")
RANK = "x-data-parallel-rank"  # the header by which vLLM is told which of its engines to take
MAX_MODELS = 4096  # remembered; of those that no server has any more the first to come go
_ASYNC = ("vllm", "sglang")
_ABSENT = ("joining", "lost")


class Place(NamedTuple):
    """Where a base URL leads."""

    host: str
    port: int
    authority: str  # as the Host header has it
    endpoint: str  # HOST:PORT
    prefix: str  # of all its paths; mostly empty
    tls: bool


@lru_cache(1 << 14)
def place_of(url: str) -> Place:
    """A rank behind it says nothing of that."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port, shown = parts.port or (443 if tls else 80), f"[{host}]" if ":" in host else host
    return Place(host, port, parts.netloc, f"{shown}:{port}", parts.path, tls)


class Server(NamedTuple):
    """``address``: its base URL, and behind a ``#`` the data-parallel rank that it is of a server."""

    address: str
    engine: str
    silent: bool
    model: str = ""  # whose weights its models share, but for adapters

    @property
    def url(self) -> str:
        return self.address.partition("#")[0]

    @property
    def rank(self) -> str:
        """Empty where it is a whole server."""
        return self.address.partition("#")[2]

    @property
    def name(self) -> str:
        return self.address.partition("//")[2]

    @property
    def place(self) -> Place:
        return place_of(self.address)

    @property
    def knows_salts(self) -> bool:
        return self.engine != "openai"

    @property
    def knows_ids(self) -> bool:
        """It names a request in its log as we do; llama-cpp-python refuses ids that are no UUIDs."""
        return self.engine != "openai"

    @property
    def tokenises(self) -> bool:
        """It can be asked for the token ids of a prompt; SGLang of before 2026 not for a chat's."""
        return self.engine in ("vllm", "sglang")

    @property
    def takes_variables(self) -> bool:
        """It can be asked so with all variables of a chat's template."""
        return self.engine == "vllm"


class Servers:
    def __init__(self) -> None:
        self._contexts: dict[str, int] = {}  # of a model, the largest among its servers
        self._servers: dict[str, Server] = {}  # by address
        self._models: dict[str, list[Server]] = {}
        self._had: set[str] = set()  # those of them that a server has, or had when it was last heard of
        self._adapters: set[str] = set()
        self._ours: dict[str, list[str]] = {}  # names of our own workers
        self.lost: set[str] = set()  # URLs of engines that answer nothing, and can answer while they compute

    def update(self, fleet: ListWorkersResponse) -> None:
        """A model whose servers are gone can still be asked for: whether it can be had right now is the
        router's to say."""
        self._servers.clear()
        self._models = {model: [] for model in self._models}
        self._ours = {}
        lost = [worker for worker in fleet.workers if worker.state == "lost" and worker.engine in _ASYNC]
        self.lost = {worker.address.partition("#")[0] for worker in lost}
        theirs = [worker for worker in fleet.workers if worker.engine in ENGINES]
        self._had = {model for worker in theirs for model in (worker.model, *worker.models)}
        for worker in fleet.workers:
            if worker.state in _ABSENT:
                continue
            if worker.engine not in ENGINES:
                self._ours.setdefault(worker.model, []).append(worker.worker)
                continue
            server = Server(worker.address, worker.engine, worker.silent, worker.model)
            self._servers[worker.address] = server
            self._adapters.update(worker.adapters)
            for model in (worker.model, *worker.models):
                self._models.setdefault(model, []).append(server)
                self._contexts[model] = max(self._contexts.get(model, 0), worker.max_context)
        self._forget()

    def _forget(self) -> None:
        """Adapters come and go while a server runs."""
        more = max(len(self._models) - MAX_MODELS, 0)
        for model in [model for model, servers in self._models.items() if not servers][:more]:
            del self._models[model], self._contexts[model]
            self._adapters.discard(model)

    def of(self, address: str) -> Server | None:
        """None where nothing is known of it: it joined after the last look, or is lost."""
        return self._servers.get(address)

    def ours(self, model: str) -> list[str]:
        """Names of our own workers that serve it beside the servers."""
        return self._ours.get(model, [])

    def serving(self, model: str) -> list[Server]:
        return self._models.get(model, [])

    def adapter(self, model: str) -> str:
        """The adapter that a model's name names; empty where it is none."""
        return model if model in self._adapters else ""

    def adapter_for(self, server: Server, model: str) -> str:
        """The adapter that a server has to be told of. SGLang answers with the model itself where only the
        name of a model says so."""
        return self.adapter(model) if server.engine == "sglang" else ""

    def __bool__(self) -> bool:
        return bool(self._models)

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def models(self) -> dict[str, int]:
        """Served name -> context in tokens. One that is lost may come back, one that serves another model or
        has let an adapter go has said so."""
        return {model: context for model, context in self._contexts.items() if model in self._had}

    def context(self, model: str) -> int:
        """In tokens; 0 where it is not known."""
        return self._contexts.get(model, 0)
