"""Identifiers that sort by time, so that their index grows at its right edge only."""

import os


def new_id(prefix: str, now_ms: int) -> str:
    """`prefix_` + 12 hex digits of milliseconds + 20 random ones (80 bits: no two workers collide)."""
    return f"{prefix}_{now_ms:012x}{os.urandom(10).hex()}"
