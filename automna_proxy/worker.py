"""One worker of several: serves on the socket that its supervisor hands it, as
`python -m automna_proxy.worker FD PARENT_PID`."""

import os
import socket
import sys

from automna_proxy.logs import configure_logging
from automna_proxy.server import run_worker
from automna_proxy.settings import Settings


def main() -> int:
    settings = Settings.from_env(os.environ)
    configure_logging(settings)
    listener = socket.socket(fileno=int(sys.argv[1]))
    return run_worker(settings, listener, parent_pid=int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
