from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from loadtest.client import play
from loadtest.records import Record, percentile, summarise
from loadtest.workloads import ChatShape, Message, Turn, chat
from tests.unit.loadtest.stand_in import PIECES, StandIn

SYSTEM = Message("system", 3, "able acid area")


def turn(at: float, text: str, conversation: int = 0) -> Turn:
    return Turn(at, conversation, (SYSTEM, Message("user", len(text.split()), text)), 0, 8)


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
async def url(stand_in: StandIn) -> AsyncIterator[str]:
    async with TestServer(stand_in.app()) as server:
        yield str(server.make_url("/"))


async def test_times_a_stream_from_its_first_text_to_its_end(url: str) -> None:
    (record,) = await play(url, [turn(0, "arms")], model="m")
    assert (record.status, record.finished, record.error) == (200, True, "")
    assert len(record.itls) == len(PIECES) - 1
    assert record.ttft is not None
    assert record.e2e is not None
    assert record.ttft >= 2 * 0.009  # the role comes first and is not text
    assert record.e2e >= record.ttft + sum(record.itls)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (4, 0, 3)


async def test_reads_usage_of_an_answer_that_is_not_streamed(url: str, stand_in: StandIn) -> None:
    first, second = await play(url, [turn(0, "arms"), turn(0.05, "baby", 1)], model="m", stream=False)
    assert (first.cached_tokens, second.cached_tokens) == (0, 3)
    assert (first.status, first.worker) == (200, "w0")
    assert "stream" not in stand_in.bodies[0]
    assert summarise([first, second]).hit_rate == pytest.approx(3 / 8)


async def test_arrivals_do_not_wait_for_answers(url: str, stand_in: StandIn) -> None:
    stand_in.waits_for = 10
    turns = [turn(n * 0.01, "arms", conversation=n) for n in range(10)]
    records = await play(url, turns, model="m")
    assert all(r.finished for r in records)
    assert all(r.sent >= t.at for r, t in zip(records, turns, strict=True))


async def test_a_turn_waits_for_the_answer_before_it(url: str) -> None:
    first, second = await play(url, [turn(0, "arms"), turn(0.001, "baby")], model="m")
    assert first.e2e is not None
    assert second.sent is not None
    assert second.sent >= first.e2e


async def test_a_refusal_is_an_error_and_not_finished(url: str) -> None:
    records = await play(url, [turn(0, "fail"), turn(0, "arms", 1)], model="m")
    summary = summarise(records)
    assert (summary.requests, summary.finished, summary.errors) == (2, 1, 1)
    assert records[0].error.startswith("HTTP 503")
    assert records[0].ttft is None


async def test_a_stream_without_its_end_is_an_error(url: str) -> None:
    (record,) = await play(url, [turn(0, "break")], model="m")
    assert (record.status, record.finished, record.error) == (200, False, "the stream ended without [DONE]")


async def test_what_hangs_is_cut_and_counts_with_the_time_it_waited(url: str) -> None:
    turns = [turn(0, "hang"), turn(0, "never sent"), turn(0, "arms", 1)]
    records = await play(url, turns, model="m", grace=0.3)
    assert (records[0].finished, records[0].e2e) == (False, None)
    assert records[0].ttft is not None
    assert records[0].ttft >= 0.3
    assert (records[1].sent, records[1].ttft) == (None, None)
    assert summarise(records).finished == 1


async def test_a_server_that_is_gone_is_an_error() -> None:
    (record,) = await play("http://127.0.0.1:9", [turn(0, "arms")], model="m")
    assert "ClientConnectorError" in record.error


async def test_plays_a_generated_workload(url: str, stand_in: StandIn) -> None:
    stand_in.gap_s = 0
    turns = chat(30, 1, seed=1, shape=ChatShape(think_s=0.1))
    summary = summarise(await play(url, turns, model="m"))
    assert summary.finished == summary.requests == len(turns) > 10
    assert 0 < summary.hit_rate < 1


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_percentile_is_the_nearest_rank(share: float, wanted: float) -> None:
    assert percentile([4, 1, 3, 2], share) == wanted


def test_summary_of_nothing_is_zero() -> None:
    assert summarise([]).ttft_p99 == 0
    assert summarise([Record(0, 0.0, error="gone")]).errors == 1
