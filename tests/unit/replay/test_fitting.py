"""Profiles from measured steps."""

from random import Random

import pytest
from warmfleet_router.replay.fitting import NAMES, Measured, error, fit, predict
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
    Measured(2048 / 41_500, [(2048, 0)]),
    Measured(8192 / 38_400, [(8192, 0)]),
    Measured(32_768 / 27_100, [(8192, 8192 * n) for n in range(4)], passes=4),
    Measured(4.80e-3, batch=1, context=512),
    Measured(6.50e-3, batch=64, context=64 * 512),
    Measured(25.1e-3, batch=256, context=256 * 2048),
]


def steps(count: int, noise: float, seed: int = 0) -> list[Measured]:
    random, made = Random(seed), []
    for _ in range(count):
        chunks = [(random.randrange(1, 4096), random.randrange(30_000)) for _ in range(random.randrange(3))]
        batch = random.randrange(0 if chunks else 1, 200)
        bare = Measured(1.0, chunks, batch, batch * random.randrange(100, 3000))
        seconds = predict(TRUE, bare) * random.lognormvariate(0.0, noise)
        made.append(Measured(seconds, bare.chunks, bare.batch, bare.context))
    return made


def test_exact_steps_give_the_profile_back() -> None:
    found = fit(steps(60, 0.0), Profile())
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_noise_and_outliers_pass_by() -> None:
    measured = steps(1000, 0.1)
    measured[::20] = [Measured(r.seconds * 20, r.chunks, r.batch, r.context) for r in measured[::20]]
    found = fit(measured, Profile())
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.3), name
    assert error(found, steps(200, 0.0, seed=1)) < 0.03


def test_a_single_prompt_tells_what_a_token_takes() -> None:
    """Not what a step takes: else a prompt of any length would be as long."""
    found = fit([Measured(0.4, [(1000, 0)]), *[Measured(0.02, batch=1)] * 5], Profile())
    assert (found.prefill_base, found.prefill_token) == (0.0, pytest.approx(4e-4))


def test_what_was_never_seen_is_nothing_and_nothing_is_negative() -> None:
    found = fit(
        [Measured(0.1, [(1000, 0)]), Measured(0.1, [(2000, 0)]), Measured(0.3, [(500, 0)])], Profile()
    )
    assert found.decode_base == found.decode_token == found.decode_sequence == 0.0
    assert min(getattr(found, name) for name in NAMES) >= 0.0
    with pytest.raises(ValueError, match="no step"):
        fit([Measured(0.0, [(1000, 0)]), Measured(1.0)], Profile())


@pytest.mark.parametrize("step", ANCHORS, ids=lambda step: f"{step.batch}x{sum(t for t, _ in step.chunks)}")
def test_the_shipped_profile_is_within_a_tenth_of_what_was_measured(step: Measured) -> None:
    shipped = profile_of("h200-llama-3-8b")
    assert predict(shipped, step) == pytest.approx(step.seconds, rel=0.1)


def test_the_same_figures_fitted_are_as_close() -> None:
    found = fit(ANCHORS, Profile())
    assert [predict(found, step) for step in ANCHORS] == pytest.approx([s.seconds for s in ANCHORS], rel=0.1)
    # 128 new tokens on 32k cached ones were not fitted; they took 22.6 ms, of which much is per call.
    assert predict(found, Measured(1.0, [(128, 32_768)])) < 22.6e-3
