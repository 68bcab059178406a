"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# Times on a shared machine are noise; pytest's own limit ends what hangs.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in every run: who changes something else is not told of a rare failure by chance.
# `make nightly` searches on.
settings.register_profile("fixed", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("fixed")
