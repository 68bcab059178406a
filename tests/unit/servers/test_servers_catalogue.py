"""What the router is asked about an adapter's prompt, and what a configured rank is."""

import pytest
from warmfleet_proto.router_pb2 import ListWorkersResponse, WorkerView
from warmfleet_proto.settings import ConfigError
from warmfleet_router.events.identity import salt_of
from warmfleet_router.gateway.intake import ANONYMOUS
from warmfleet_router.gateway.relay import RelayRequest, routed
from warmfleet_router.picker import replies
from warmfleet_router.servers import catalogue
from warmfleet_router.servers.ask import parse
from warmfleet_router.servers.backend import Backend, check
from warmfleet_router.servers.catalogue import RANK, Servers

LISTED = WorkerView(
    worker="h:1", address="http://h:1", state="healthy", model="base", engine="vllm", max_context=100
)


def test_an_adapters_name_is_in_the_root_of_its_prompts() -> None:
    servers = Servers()
    LISTED.models[:], LISTED.adapters[:] = ["alias", "poet"], ["poet"]
    servers.update(ListWorkersResponse(workers=[LISTED]))
    assert servers.models() == {"base": 100, "alias": 100, "poet": 100}
    for model, adapter in (("base", ""), ("alias", ""), ("poet", "poet")):
        asked = parse(b'{"model":"%b","prompt":[1,2]}' % model.encode(), False)
        wanted = RelayRequest("id", ANONYMOUS, asked, "salt", bytes(8), 0.0, "/v1/completions")
        assert routed(wanted, servers, "g").salt == salt_of(adapter, "salt")


def test_a_picked_rank_goes_into_its_header() -> None:
    for rank in ("", "3"):
        reply = replies.picked(["h:1"], ((RANK, rank),) if rank else (), None)
        set_headers = reply.request_body.response.header_mutation.set_headers
        sent = {each.header.key: each.header.raw_value for each in set_headers}
        assert sent == {replies.ENDPOINT: b"h:1"} | ({RANK: b"3"} if rank else {})


def test_ranks_have_endpoints_of_their_own() -> None:
    backend = Backend(
        url="http://h:80/v1", kind="vllm", ranks=3, events="tcp://h:5557", replay="tcp://h:6000"
    )
    ranks = backend.each_rank()
    assert [rank.address for rank in ranks] == ["http://h:80#0", "http://h:80#1", "http://h:80#2"]
    assert [rank.events for rank in ranks] == ["tcp://h:5557", "tcp://h:5558", "tcp://h:5559"]
    assert [rank.replay for rank in ranks] == ["tcp://h:6000", "tcp://h:6001", "tcp://h:6002"]
    assert [rank.each_rank() for rank in ranks] == [[rank] for rank in ranks]
    for bad in (Backend(url="http://h:1", ranks=2), Backend(url="http://h:1", kind="vllm", ranks=2, rank=0)):
        with pytest.raises(ConfigError, match=r"\[0\]\.rank"):
            check("backends[0]", bad)


def test_adapters_that_come_and_go_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_MODELS", 10)
    servers = Servers()
    for n in range(50):
        names = [f"adapter-{n}", f"adapter-{n + 1}"]
        view = WorkerView(
            worker="s", address="http://s:1", state="healthy", model="m", engine="vllm", max_context=100,
            models=names, adapters=names,
        )  # fmt: skip
        servers.update(ListWorkersResponse(workers=[view]))
        assert servers.models().keys() == {"m", *names}
    assert len(servers._contexts) == len(servers._models) == 10
    assert len(servers._adapters) == 9
    assert "adapter-49" in servers, "what went lately can be asked for: the router says that it is not there"


def test_models_of_who_is_lost_stay_listed_and_those_that_it_serves_no_more_do_not() -> None:
    servers = Servers()
    for state, model, listed in (("healthy", "a", {"a"}), ("lost", "a", {"a"}), ("healthy", "b", {"b"})):
        view = WorkerView(
            worker="s", address="http://s:1", state=state, model=model, engine="vllm", max_context=9
        )
        servers.update(ListWorkersResponse(workers=[view]))
        assert servers.models() == dict.fromkeys(listed, 9)
    assert "a" in servers
    servers.update(ListWorkersResponse())
    assert not servers.models()
    assert servers.context("b") == 9
