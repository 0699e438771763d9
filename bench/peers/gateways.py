"""Each gateway of the field: how it is started, where it is asked and with what, and what it does beside forwarding.

At their fastest sensible settings, as their own documentation has them: one worker, no log of requests, nothing asked of the
internet. What they could do with a database or a paid edition is not done here.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.targets import LOOPBACK, VENDOR_KEY

HERE = Path(__file__).parent
ARCHITECTURE = "arm64" if platform.machine() == "aarch64" else "x64"
"""As npm has it."""
MASTER_KEY = "sk-bench-master"


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway that can be installed, at one of its ways to Anthropic's messages: a row of the tables."""

    name: str
    path: str
    does: str
    """What it does with a request, as said below the table."""
    program: str
    """What is there when it is installed, below this folder."""
    arguments: Sequence[str]
    """`{here}` is this folder, `{port}` where it must listen."""
    environ: Mapping[str, str]
    """All that it knows of the environment but PATH and a home; `{vendor}` is the vendor's origin."""
    locked: tuple[str, str]
    """A file of this folder, and where in it the version stands."""
    token: str
    """What every client sends as its key: without a database it knows no users."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What clients send beside those of every client; `{vendor}` as above."""

    def installed(self) -> Path | None:
        program = HERE / self.program
        return program if program.exists() else None

    def version(self) -> str:
        """Of what the lock installs. Raises ValueError where the file says nothing of it."""
        name, pattern = self.locked
        found = re.search(pattern, (HERE / name).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            raise ValueError(f"{name}: no version, expected {pattern}")
        return found[1]


LITELLM = Peer(
    "LiteLLM",
    "/v1/messages",
    "checks its master key, finds the model, works out the cost; kept in memory (its spend tracking needs Postgres, which "
    "is not there)",
    program=".venv-litellm/bin/litellm",
    arguments=(
        *("--config", "{here}/litellm.yaml"),
        *("--host", LOOPBACK, "--port", "{port}"),
        *("--num_workers", "1"),
    ),
    environ={
        "ANTHROPIC_API_BASE": "{vendor}",
        "ANTHROPIC_API_KEY": VENDOR_KEY,
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY_DISABLED": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
    },
    locked=("litellm.lock", r"^litellm==(\S+)"),
    token=MASTER_KEY,
)

LITELLM_PASS_THROUGH = replace(
    LITELLM,
    name="LiteLLM pass-through",
    path="/anthropic/v1/messages",
    does="checks its master key, forwards the body as it is, works out the cost afterwards; kept in memory, too",
)

PORTKEY = Peer(
    "Portkey",
    "/v1/messages",
    "on Node; checks and meters nothing: the client sends the vendor's key, and where the vendor is",
    program=f"node_modules/node-linux-{ARCHITECTURE}/bin/node",
    arguments=(
        *("--require", "{here}/loopback.cjs"),
        *("{here}/node_modules/@portkey-ai/gateway/build/start-server.js", "--headless", "--port={port}"),
    ),
    environ={"NODE_ENV": "production"},
    locked=("package.json", r'"@portkey-ai/gateway": "([^"]+)"'),
    token=VENDOR_KEY,
    headers={"x-portkey-provider": "anthropic", "x-portkey-custom-host": "{vendor}/v1"},
)

PEERS = (LITELLM, LITELLM_PASS_THROUGH, PORTKEY)
