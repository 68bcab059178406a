"""The inner loops of a placement: in C where that was built, else in Python."""

from warmfleet_router.index.index import native
from warmfleet_router.offers_python import Offers

if native:
    from warmfleet_router._native import nearest, offers
else:
    from warmfleet_router.offers_python import nearest, offers

__all__ = ["Offers", "nearest", "offers"]
