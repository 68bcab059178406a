"""Settings that all tests share."""

from hypothesis import settings

# Times on a shared machine are noise; pytest's own limit ends what hangs.
settings.register_profile("warmfleet", deadline=None)
settings.load_profile("warmfleet")
