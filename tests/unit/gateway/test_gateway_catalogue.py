"""Which models a gateway offers, given what the router says of the fleet and which tokenizers are here."""

import pytest
from warmfleet_proto.errors import BadRequest, Rejected
from warmfleet_proto.router_pb2 import ListWorkersResponse, WorkerView
from warmfleet_router.gateway.aliases import Aliases
from warmfleet_router.gateway.catalogue import Catalogue, Vocabulary

SMOLLM, QWEN_IDS, QWEN = 49_152, 151_665, 151_936  # Qwen's rows are padded
OWN = Vocabulary(100, 100)


def fleet(*workers: tuple[str, str, int, int]) -> ListWorkersResponse:
    views = [WorkerView(model=m, state=s, max_context=c, vocab_size=v) for m, s, c, v in workers]
    return ListWorkersResponse(workers=views)


def offered(catalogue: Catalogue, **rows: int) -> set[str]:
    """Of a fleet with a worker a model, whose vocabulary has so many rows."""
    catalogue.update(fleet(*((model, "healthy", 64, count) for model, count in rows.items())))
    return set(catalogue.models())


def test_the_largest_context_counts_and_joining_workers_do_not() -> None:
    catalogue = Catalogue("", OWN)
    with pytest.raises(Rejected):
        catalogue.context("m")
    catalogue.update(fleet(("m", "joining", 0, 0)))
    assert not catalogue.ready
    catalogue.update(fleet(("m", "healthy", 64, 100), ("m", "stuck", 32, 100), ("m", "lost", 8, 100)))
    assert catalogue.context("m") == 64
    assert catalogue.models() == {"m": 64}
    with pytest.raises(BadRequest, match="'other' is not served") as unknown:
        catalogue.context("other")
    assert (unknown.value.field, unknown.value.status) == ("model", 404)


def test_an_answer_of_any_length_does_not_ask_for_the_largest_worker() -> None:
    catalogue = Catalogue("", OWN)
    catalogue.update(fleet(("m", "healthy", 64, 100), ("m", "healthy", 32, 100), ("m", "healthy", 1024, 100)))
    assert [catalogue.roomy("m", tokens) for tokens in (1, 16, 17, 32, 33, 512, 900)] == [
        32, 32, 64, 64, 1024, 1024, 1024
    ]  # fmt: skip


@pytest.mark.parametrize("left", [fleet(), fleet(("m", "lost", 64, 100)), fleet(("m", "joining", 0, 0))])
def test_a_fleet_that_goes_away_is_not_forgotten(left: ListWorkersResponse) -> None:
    catalogue = Catalogue("", OWN)
    catalogue.update(fleet(("m", "healthy", 64, 100)))
    catalogue.update(left)
    assert catalogue.models() == {"m": 64}


def test_another_tokenizer_or_name_is_not_offered() -> None:
    catalogue = Catalogue("mine", OWN)
    assert offered(catalogue, mine=99, other=100) == set()
    assert offered(catalogue, mine=100, other=100) == {"mine"}


def test_a_second_model_is_not_read_with_the_tokenizer_of_the_first() -> None:
    catalogue = Catalogue("", Vocabulary(SMOLLM, SMOLLM))
    refused = catalogue.update(fleet(("smollm", "healthy", 64, SMOLLM), ("qwen", "healthy", 64, QWEN)))
    assert set(catalogue.models()) == {"smollm"}
    assert list(refused) == ["qwen"]
    assert "set tokenizers.qwen" in refused["qwen"]
    with pytest.raises(BadRequest, match=r"'qwen' is not served here.*151936.*tokenizers.qwen") as why:
        catalogue.context("qwen")
    assert (why.value.field, why.value.status) == ("model", 404)
    again = fleet(("smollm", "healthy", 64, SMOLLM), ("qwen", "lost", 64, QWEN))
    assert not catalogue.update(again), "it is told once"


def test_the_only_model_has_the_tokenizer_that_was_given() -> None:
    """Its vocabulary is padded, and a folder with a tokenizer alone does not say by how much."""
    assert offered(Catalogue("", Vocabulary(QWEN_IDS)), qwen=QWEN) == {"qwen"}
    assert offered(Catalogue("", Vocabulary(SMOLLM, SMOLLM, given=False)), qwen=QWEN) == set(), "the demo's"
    assert offered(Catalogue("", Vocabulary(SMOLLM, SMOLLM)), qwen=QWEN, tiny=256) == set()


def test_of_several_padded_ones_the_models_own_files_tell_which_it_is() -> None:
    known, unknown = Vocabulary(QWEN_IDS, QWEN), Vocabulary(QWEN_IDS)
    assert offered(Catalogue("", known), qwen=QWEN, coder=QWEN, larger=152_064) == {"qwen", "coder"}
    assert offered(Catalogue("", unknown), qwen=QWEN, larger=152_064) == set(), "either may be meant"
    assert offered(Catalogue("qwen", unknown), qwen=QWEN, larger=152_064) == {"qwen"}


def test_a_model_that_was_alone_is_given_up_for_the_one_that_is_meant() -> None:
    catalogue = Catalogue("", Vocabulary(SMOLLM, SMOLLM))
    assert offered(catalogue, qwen=QWEN) == {"qwen"}
    assert offered(catalogue, qwen=QWEN, smollm=SMOLLM) == {"smollm"}


def test_a_model_that_was_alone_goes_on_when_another_padded_one_joins() -> None:
    catalogue = Catalogue("", Vocabulary(200))
    assert offered(catalogue, a=256) == {"a"}
    assert offered(catalogue, a=256, b=300) == {"a"}
    assert offered(catalogue, a=260, b=300) == set(), "not the one that it was"


def test_the_reason_of_a_refusal_is_the_true_one() -> None:
    catalogue = Catalogue("m", Vocabulary(200))
    assert offered(catalogue, m=100, other=300) == set()
    assert "its workers have 100 ids, the tokenizer here 200" in catalogue._refused["m"]
    assert "it is not served_name" in catalogue._refused["other"]


@pytest.mark.parametrize("served_name", ["", "smollm"])
def test_a_model_with_a_tokenizer_of_its_own_is_served_beside(served_name: str) -> None:
    catalogue = Catalogue(served_name, Vocabulary(SMOLLM, SMOLLM), {"qwen": QWEN_IDS, "tiny": 300})
    assert offered(catalogue, smollm=SMOLLM, qwen=QWEN, tiny=256, wide=QWEN) == {"smollm", "qwen"}
    with pytest.raises(BadRequest, match=r"tokenizers\.tiny has 300 ids, the workers of the model 256"):
        catalogue.context("tiny")


def test_without_a_tokenizer_of_its_own_a_gateway_serves_what_has_one_by_name() -> None:
    catalogue = Catalogue("", Vocabulary(0, given=False), {"qwen": QWEN_IDS})
    assert offered(catalogue, smollm=SMOLLM, qwen=QWEN) == {"qwen"}


def test_servers_that_are_not_ours_are_none_of_its_models() -> None:
    assert offered(Catalogue("", OWN), m=100, server=0) == {"m"}


def test_a_name_that_nobody_has_is_no_mistake_while_our_own_workers_start() -> None:
    """Servers may be there long before: a 404 is for good, and clients would not try again."""
    catalogue, theirs, none = Catalogue("", OWN), {"theirs": 64}, Aliases({})
    catalogue.update(fleet(("theirs", "healthy", 64, 0), ("", "joining", 0, 0)))
    with pytest.raises(Rejected):
        catalogue.check("m", theirs, none)
    catalogue.update(fleet(("theirs", "healthy", 64, 0), ("m", "healthy", 64, 100)))
    catalogue.check("m", theirs, none)
    with pytest.raises(BadRequest, match="'other' is not served"):
        catalogue.check("other", theirs, none)
    servers = Catalogue("", OWN)
    servers.update(ListWorkersResponse(workers=[WorkerView(address="http://h:1", state="joining")]))
    with pytest.raises(BadRequest, match="'other' is not served"):
        servers.check("other", theirs, none)
