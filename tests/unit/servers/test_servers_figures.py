"""Load and cache under the names of each engine."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warmfleet_router.servers.figures import Figures, read

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",num_gpu_blocks="1365",num_cpu_blocks="None"} 1.0
"""
SGLANG = """\
sglang:num_running_reqs{model_name="m"} 5.0
sglang:num_queue_reqs{model_name="m"} 7.0
sglang:max_total_num_tokens{model_name="m"} 4096.0
"""
LLAMA = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n"


def test_each_engine() -> None:
    assert read(VLLM) == Figures(4, 2, 32, 1365, 0)
    assert read(SGLANG) == Figures(5, 7, 0, 0, 4096)
    assert read(LLAMA) == Figures(1, 4, 0, 0, 0)


def test_of_one_engine_behind_the_address() -> None:
    assert read(VLLM, 0) == Figures(3, 2, 0, 0, 0)
    assert read(VLLM, 1).running == 1


def test_nonsense_is_nothing() -> None:
    assert read("vllm:num_requests_running NaN\nvllm:num_requests_waiting -3\n") == Figures()
    assert read('vllm:num_requests_running 1e300\nvllm:cache_config_info{block_size="x"} 1') == Figures()


@given(text=st.text() | st.lists(st.sampled_from([*VLLM.split(" "), "\n", '"', "{", "1e999"])).map(" ".join))
def test_anything_is_read(text: str) -> None:
    figures = read(text)
    assert all(0 <= value <= 1 << 35 for value in figures)


@pytest.mark.parametrize(
    "text",
    ["a{\n" * 300_000, "vllm:cache_config_info{" + "a" * 900_000 + "} 1", "a" * 900_000, 'a{b="' * 200_000],
)
def test_a_large_page_is_read_in_time(text: str) -> None:
    """Quadratic in its size, it would take minutes or hours."""
    began = time.process_time()
    assert read(text) == Figures()
    assert time.process_time() - began < 5
