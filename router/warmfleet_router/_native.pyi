"""The native index has the definition's interface."""

from warmfleet_router.index_python import Index as Index
