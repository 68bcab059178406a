"""Which worker holds which block: the native index where it was built, else its Python twin.

Both hold the same and answer the same (``index_python`` is the definition); the twin is many
times slower and takes more memory, so ``native`` is shown by the admin page and the log.
"""

from warmfleet_router.index_python import Overlap

try:
    from warmfleet_router._native import Index
except ImportError:  # installed without a compiler
    from warmfleet_router.index_python import Index

native: bool = Index.__module__ == "warmfleet_router._native"

__all__ = ["Index", "Overlap", "native"]
