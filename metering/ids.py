"""Identifiers that sort by time, so that their index grows at its right edge only."""

import os
import random

_random = random.Random(os.urandom(32))  # noqa: S311 - names, not secrets; a system call for each costs a microsecond
RANDOM_BITS = 80


def new_id(prefix: str, now_ms: int) -> str:
    """`prefix_` + 12 hex digits of milliseconds + 20 random ones (80 bits: no two workers collide).

    Workers are started, never forked, so each has a sequence of its own.
    """
    return f"{prefix}_{now_ms:012x}{_random.getrandbits(RANDOM_BITS):020x}"
