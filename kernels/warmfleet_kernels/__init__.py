"""The inner loops of an engine over a paged KV pool: one function an operation, whatever the device.

A pool is block-major, ``[blocks, layers, 2, kv_heads, block_size, head_dim]``: keys at index 0 of the
third axis, values at 1. ``reference`` is the definition of correct; what is exported here may be faster
and must agree with it. Nothing here knows of requests, models or caching.
"""

from warmfleet_kernels.batch import Batch, Segment, Sequence
from warmfleet_kernels.dispatch import add_rms_norm, attention, prepare, rotate_write, silu_mul, warm_up
from warmfleet_kernels.packing import fetch, send
from warmfleet_kernels.reference import copy_blocks, write_kv
from warmfleet_kernels.rotation import Rotation, rotate
from warmfleet_kernels.rows import pack, project, project_onto

__all__ = [
    "Batch",
    "Rotation",
    "Segment",
    "Sequence",
    "add_rms_norm",
    "attention",
    "copy_blocks",
    "fetch",
    "pack",
    "prepare",
    "project",
    "project_onto",
    "rotate",
    "rotate_write",
    "send",
    "silu_mul",
    "warm_up",
    "write_kv",
]
