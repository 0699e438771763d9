"""automna-proxy with one worker on a port of 127.0.0.1: `python -m bench.serve PORT`, settings in the environment."""

import os
import sys

from automna_proxy.server import serve
from automna_proxy.settings import Settings

if __name__ == "__main__":
    sys.exit(serve(Settings.from_env(os.environ), host="127.0.0.1", port=int(sys.argv[1]), workers=1))
