"""The inner loops of a placement, by C where that was built, else as they are defined."""

from warmfleet_router.index.index import native
from warmfleet_router.offers_python import Offers

if native:
    from warmfleet_router._native import nearest, offers
else:
    from warmfleet_router.offers_python import nearest, offers

__all__ = ["Offers", "nearest", "offers"]
