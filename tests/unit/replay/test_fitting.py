"""Profiles from measured steps."""

from random import Random

import pytest
from warmfleet_proto.work import Work, work_of
from warmfleet_router.replay.fitting import NAMES, Measured, Sample, error, fit
from warmfleet_router.replay.profile import Profile, profile_of

TRUE = Profile(
    name="true",
    prefill_base=3e-3,
    prefill_token=2.5e-5,
    prefill_pair=8e-10,
    decode_base=5e-3,
    decode_sequence=2e-5,
    decode_token=3e-8,
)

# What vLLM 0.26 took on one H200 (Llama-3-8B, bf16): prompts in chunks of 8,192, then decode steps.
ANCHORS = [
    Measured(2048 / 41_500, [(2048, 0)]).sample,
    Measured(8192 / 38_400, [(8192, 0)]).sample,
    Measured(32_768 / 27_100, [(8192, 8192 * n) for n in range(4)], passes=4).sample,
    Measured(4.80e-3, batch=1, context=512).sample,
    Measured(6.50e-3, batch=64, context=64 * 512).sample,
    Measured(25.1e-3, batch=256, context=256 * 2048).sample,
]


def steps(count: int, noise: float, seed: int = 0) -> list[Sample]:
    random, made = Random(seed), []
    for _ in range(count):
        chunks = [(random.randrange(2, 4096), random.randrange(30_000)) for _ in range(random.randrange(3))]
        batch = random.randrange(0 if chunks else 1, 200)
        work = work_of([*chunks, *[(1, random.randrange(100, 3000))] * batch])
        made.append(Sample(TRUE.step_s(work) * random.lognormvariate(0.0, noise), work))
    return made


def test_exact_steps_give_the_profile_back() -> None:
    found = fit(steps(60, 0.0), Profile())
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_noise_and_outliers_pass_by() -> None:
    measured = steps(1000, 0.1)
    measured[::20] = [Sample(20 * seconds, work) for seconds, work in measured[::20]]
    measured[7::20] = [Sample(seconds / 20, work) for seconds, work in measured[7::20]]
    found = fit(measured, Profile())
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.3), name
    assert error(found, steps(200, 0.0, seed=1)) < 0.03


def test_the_last_token_of_a_prompt_is_computed_like_those_that_decode() -> None:
    """As workers count it: beside others it makes no second step."""
    step = Measured(1.0, [(2048, 0), (1, 100)], batch=64, context=6400).sample
    assert step.work == Work(1, 2048, 1024 * 2048, 1, 65, 6500)
    assert Measured(1.0, [(1, 100)]).sample.work == Work(0, 0, 0, 1, 1, 100)


def test_steps_without_a_duration_pass_by() -> None:
    measured = [*steps(60, 0.0), Sample(0.0, work_of([(1000, 0)]))]
    found = fit(measured, Profile())
    assert found.prefill_token == pytest.approx(TRUE.prefill_token, rel=1e-6)
    assert error(found, measured) < 1e-6


def test_a_single_prompt_tells_what_a_token_takes() -> None:
    """Not what a step takes: else a prompt of any length would be as long."""
    found = fit([Measured(0.4, [(1000, 0)]).sample, *[Measured(0.02, batch=1).sample] * 5], Profile())
    assert (found.prefill_base, found.prefill_token) == (0.0, pytest.approx(4e-4))


def test_what_was_never_seen_is_nothing_and_nothing_is_negative() -> None:
    prompts = [Measured(0.1, [(1000, 0)]), Measured(0.1, [(2000, 0)]), Measured(0.3, [(500, 0)])]
    found = fit([each.sample for each in prompts], Profile())
    assert found.decode_base == found.decode_token == found.decode_sequence == 0.0
    assert min(getattr(found, name) for name in NAMES) >= 0.0
    with pytest.raises(ValueError, match="no step"):
        fit([Measured(0.0, [(1000, 0)]).sample, Measured(1.0).sample], Profile())


def test_the_shipped_profile_is_within_a_tenth_of_what_was_measured() -> None:
    shipped = profile_of("h200-llama-3-8b")
    for seconds, work in ANCHORS:
        assert shipped.step_s(work) == pytest.approx(seconds, rel=0.1), work


def test_the_same_figures_fitted_are_as_close() -> None:
    found = fit(ANCHORS, Profile())
    for seconds, work in ANCHORS:
        assert found.step_s(work) == pytest.approx(seconds, rel=0.1), work
    # 128 new tokens on 32k cached ones were not fitted; they took 22.6 ms, of which much is per call.
    assert found.step_s(work_of([(128, 32_768)])) < 22.6e-3
