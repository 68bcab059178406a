"""A request for a model that our own workers and other servers serve: the placement says who does."""

from warmfleet_proto.router_pb2 import FinishRequest, RouteRequest

from warmfleet_router.gateway.generation import Generation
from warmfleet_router.gateway.placing import Placed, Upstream, is_server
from warmfleet_router.gateway.relay import Relay


class Either(Placed):
    """It is ``relay`` or ``generation`` after ``chosen``; which of them it is may change with a retry."""

    def __init__(self, upstream: Upstream, deadline: float, relay: Relay, generation: Generation) -> None:
        super().__init__(upstream, deadline)
        self._relay = relay
        self._generation = generation
        self._chosen: Relay | Generation = generation

    @property
    def prompt_tokens(self) -> int:
        return self._generation.prompt_tokens

    async def chosen(self) -> Relay | Generation:
        """Started. The other one does nothing. Raises BadRequest, Rejected or WorkerLost."""
        await self.start()
        self._chosen.take_over(self)
        return self._chosen

    def finish(self, error: BaseException | None = None, completion_tokens: int = 0) -> None:
        super().finish(error, completion_tokens)
        self._chosen.finish(error, completion_tokens)  # whoever has taken over

    def _route(self) -> RouteRequest:
        return self._generation.wanted.route(self._upstream.gateway_id, self.tried)

    async def _submit(self) -> None:
        self._chosen = self._relay if is_server(self.placement.address) else self._generation
        await self._chosen.submit_for(self)

    def _let_go(self) -> None:
        self._chosen._let_go()

    def _told(self, report: FinishRequest) -> None:
        self._chosen._told(report)
