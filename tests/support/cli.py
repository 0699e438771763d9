"""The command on a store of its own, in this process or in one that it is alone in."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from automna_proxy.cli import app
from metering.clock import SystemClock
from metering.ledger import MONEY, Hold, Intent, Ledger, Outcome, Reservation, Settlement
from metering.prices import Priced, PricedLine
from metering.store.database import Database
from metering.store.store import open_store

WAIT_S = 60.0
"""For a process to say or end what it should at once."""


@dataclass
class Cli:
    """The command on a store of its own."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = {"DATABASE_URL": f"sqlite:///{self.path}", **self.env}

    def run(self, *args: str) -> Any:
        """In this process."""
        return CliRunner().invoke(app, list(args), env=self.env, prog_name="automna-proxy")

    def ok(self, *args: str) -> str:
        result = self.run(*args)
        assert (result.exit_code, result.exception) == (0, None), result.stderr
        return result.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "--json"))

    def spawn(self, *args: str, **how: Any) -> "subprocess.Popen[str]":
        """In a process of its own, as an operator runs it."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
        environ = {
            name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "COLUMNS"}
        }
        return subprocess.Popen(
            [sys.executable, "-m", "automna_proxy", *args], env={**environ, **self.env}, **pipes
        )

    def process(self, *args: str) -> "subprocess.CompletedProcess[str]":
        process = self.spawn(*args)
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def book(self, cost_nanousd: int, *, user: str = "alice", model: str = "claude-x") -> None:
        """A request of a user, settled, as a server would write it meanwhile."""

        async def write() -> None:
            async with open_store(Database(self.path)) as store:
                ledger = Ledger(store, SystemClock(), "wrk_1")
                period = SystemClock().now_ms() // 1000
                hold = Hold(f"user:{user}", MONEY, "2026-11", cost_nanousd, 10**12)
                intent = Intent(
                    f"req_{period}_{os.urandom(4).hex()}", user, "tok", "anthropic", "POST /x", model, (hold,)
                )
                reservation = await ledger.reserve(intent)
                assert isinstance(reservation, Reservation)
                line = PricedLine(model, {"input_tokens": cost_nanousd}, {}, {"input_tokens": 1_000})
                priced = Priced(cost_nanousd, (line,), ())
                await ledger.settle(reservation, Settlement(Outcome.COMPLETED, priced, is_reported=True))

        asyncio.run(write())


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("automna-proxy: ")
    return line
