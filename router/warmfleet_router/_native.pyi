"""The native presence has the definition's interface."""

from warmfleet_router.index_python import Presence as Presence
