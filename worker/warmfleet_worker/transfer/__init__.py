"""Blocks from one worker's cache to another's: grants, leases, and the transports that carry the bytes."""
