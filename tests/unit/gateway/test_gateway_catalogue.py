"""Which models a gateway offers, given what the router says of the fleet."""

import pytest
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.router_pb2 import ListWorkersResponse, WorkerView
from warmfleet_router.gateway.catalogue import Catalogue


def fleet(*workers: tuple[str, str, int, int]) -> ListWorkersResponse:
    views = [WorkerView(model=m, state=s, max_context=c, vocab_size=v) for m, s, c, v in workers]
    return ListWorkersResponse(workers=views)


def test_the_largest_context_counts_and_joining_workers_do_not() -> None:
    catalogue = Catalogue("", 100)
    with pytest.raises(Rejected):
        catalogue.context("m")
    catalogue.update(fleet(("m", "joining", 0, 0)))
    assert not catalogue.ready
    catalogue.update(fleet(("m", "healthy", 64, 100), ("m", "stuck", 32, 128), ("m", "lost", 8, 100)))
    assert catalogue.context("m") == 64
    assert catalogue.models() == {"m": 64}
    with pytest.raises(BadRequest, match="'other' is not served") as unknown:
        catalogue.context("other")
    assert (unknown.value.field, unknown.value.status) == ("model", 404)


def test_an_answer_of_any_length_does_not_ask_for_the_largest_worker() -> None:
    catalogue = Catalogue("", 100)
    catalogue.update(fleet(("m", "healthy", 64, 100), ("m", "healthy", 32, 100), ("m", "healthy", 1024, 100)))
    assert [catalogue.roomy("m", tokens) for tokens in (1, 16, 17, 32, 33, 512, 900)] == [
        32, 32, 64, 64, 1024, 1024, 1024
    ]  # fmt: skip


def test_a_fleet_that_goes_away_is_not_forgotten() -> None:
    catalogue = Catalogue("", 100)
    catalogue.update(fleet(("m", "healthy", 64, 100)))
    catalogue.update(fleet())
    assert catalogue.models() == {"m": 64}


def test_another_tokenizer_or_name_is_not_offered() -> None:
    catalogue = Catalogue("mine", 100)
    catalogue.update(fleet(("mine", "healthy", 64, 99), ("other", "healthy", 64, 100)))
    assert catalogue.models() == {}
    catalogue.update(fleet(("mine", "healthy", 64, 100)))
    assert catalogue.models() == {"mine": 64}
