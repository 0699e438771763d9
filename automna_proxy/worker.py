"""One worker of several: serves on the sockets that its supervisor hands it, as
`python -m automna_proxy.worker PARENT_PID FD...`."""

import os
import socket
import sys

from automna_proxy.logs import configure_logging
from automna_proxy.server import run_worker
from automna_proxy.settings import Settings


def main() -> int:
    settings = Settings.from_env(os.environ)
    configure_logging(settings)
    parent_pid, *descriptors = map(int, sys.argv[1:])
    listeners = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return run_worker(settings, listeners, parent_pid=parent_pid)


if __name__ == "__main__":
    sys.exit(main())
