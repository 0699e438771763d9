"""A disk that fails on demand, below a server process: full, broken, slow, or the death of the process in the middle
of a write or a sync. A shared library (faulty_disk.c) preloaded into the server, told what to do by a mapped file."""

import mmap
import os
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty_disk.c")
COMPILED_WITHIN_S = 60
FIELDS = (
    "write_errno",
    "growth_errno",
    "sync_errno",
    "read_errno",
    "sync_delay_us",
    "read_delay_us",
    "open_errno",
    "short_writes",
    "only",
    "kill_at_write",
    "kill_at_sync",
    "kill_after_sync",
    "kill_at_read",
    "writes",
    "syncs",
)
"""What faulty_disk.c explains, in its order; each a signed number of 64 bits."""
FIELD = struct.Struct("=q")
MAIN_FILE, THE_LOG = 1, 2
"""Of `only`: the database, which only checkpoints of its write-ahead log write to; and that log."""


class DiskControl:
    """The mapped file that says what the disk does; the process on that disk may open it too."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR)
        self._control = mmap.mmap(descriptor, FIELD.size * len(FIELDS))
        os.close(descriptor)

    def set(self, **fields: int) -> None:
        """Break (or mend, with 0) what the names say, at once: `disk.set(growth_errno=errno.ENOSPC)`."""
        for name, value in fields.items():
            FIELD.pack_into(self._control, FIELD.size * FIELDS.index(name), value)

    def get(self, field: str) -> int:
        (value,) = FIELD.unpack_from(self._control, FIELD.size * FIELDS.index(field))
        return int(value)

    def mend(self) -> None:
        """A healthy disk again. Counters stay."""
        self.set(**dict.fromkeys(FIELDS[: FIELDS.index("writes")], 0))


class FaultyDisk(DiskControl):
    """The disk below the store of one folder. Healthy until told otherwise; `env` goes to the server's process."""

    def __init__(self, folder: Path) -> None:
        library, control = folder / "faulty_disk.so", folder / "faulty_disk.control"
        compile_library(library)
        control.write_bytes(bytes(FIELD.size * len(FIELDS)))
        super().__init__(control)
        self.env = {
            "LD_PRELOAD": str(library),
            "FAULTY_DISK_CONTROL": str(control),
            "FAULTY_DISK_PATH": str(folder / "ledger.db"),
        }


def compile_library(target: Path) -> None:
    """With the machine's C compiler, which CI installs."""
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(target), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=COMPILED_WITHIN_S)
