"""What a worker's process is told before it serves."""

import resource
import subprocess
import sys

from automna_proxy.server import keep_freed_memory

ROUNDS, BYTES = 50, 600_000
PAGES = BYTES // resource.getpagesize()


def made_and_freed():
    """Page faults of blocks as long bodies need them, two at a time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(ROUNDS):
        block = b"x" * BYTES
        another = block + b"y"
        del block, another
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_is_freed_is_there_for_the_next_long_body():
    asked = "from tests.unit.automna_proxy.test_server import faults; faults()"
    finished = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert int(finished.stdout) < 4 * PAGES


def faults():
    """In a process of its own: what is kept is kept for good."""
    keep_freed_memory()
    print(made_and_freed())
