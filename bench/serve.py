"""automna-proxy on a port of 127.0.0.1: `python -m bench.serve PORT [WORKERS]`, settings in the environment."""

import os
import sys

from automna_proxy.server import serve
from automna_proxy.settings import Settings

if __name__ == "__main__":
    port, workers = (*map(int, sys.argv[1:]), 1)[:2]
    sys.exit(serve(Settings.from_env(os.environ), host="127.0.0.1", port=port, workers=workers))
