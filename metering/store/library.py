"""SQLite's library itself, as a process of ours uses it: without counts of its memory.

By default it adds up every allocation under one lock of the whole process, though nobody asks for the sum: two hundred times for
a request, an eighth of what that costs in the store.
"""

import _sqlite3
import ctypes
from contextlib import suppress

_OK = _sqlite3.SQLITE_OK
_MEMSTATUS = 9
"""SQLITE_CONFIG_MEMSTATUS, of sqlite3.h."""


def _stop_counting() -> bool:
    """Whether it does not count from now on. It can be told so only while nothing is open, which its count says, so this is done
    once; where something is, or Python's module does not show its library, it goes on counting."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(_sqlite3.__file__)  # the very one that the module uses
        library.sqlite3_memory_used.restype = ctypes.c_int64
        library.sqlite3_malloc.restype = ctypes.c_void_p
        is_open = library.sqlite3_memory_used() > 0
        probe = ctypes.c_void_p(library.sqlite3_malloc(1))
        is_counting = library.sqlite3_memory_used() > 0
        library.sqlite3_free(probe)
        if not is_counting:
            return True
        if not is_open and library.sqlite3_shutdown() == _OK:
            is_told: bool = library.sqlite3_config(_MEMSTATUS, 0) == _OK
            library.sqlite3_initialize()
            return is_told
    return False


COUNTS_NO_MEMORY = _stop_counting()
