"""`automna-proxy` that dies on demand: `python -m tests.support.doomed serve ...`, one worker. KILL_ORDERS names the file
of its orders (tests/support/kill_points.py), WAL_PAGES how many pages the log may have before it is checkpointed, POLL_S
how often it asks about work in the background."""

import os
from pathlib import Path

from automna_proxy.cli import main
from tests.support.kill_points import install

if __name__ == "__main__":
    install(
        Path(os.environ["KILL_ORDERS"]),
        wal_pages=int(os.environ.get("WAL_PAGES", "0")) or None,
        poll_s=float(os.environ.get("POLL_S", "0")) or None,
    )
    main()
