"""wrk, run and read."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parent / "lua" / "rotate.lua"
MARK = "BENCH "
STARTS_AND_ENDS_WITHIN_S = 30.0
"""Beyond its duration; then wrk hangs."""


class WrkError(RuntimeError):
    """wrk did not run, or said nothing that can be read."""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk saw. `answers` are whole answers; requests in flight at the end are not among them."""

    answers: int
    duration_s: float
    bytes: int
    bad_statuses: int
    socket_errors: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        return self.answers / self.duration_s

    @property
    def good_answers(self) -> int:
        return self.answers - self.bad_statuses

    @property
    def is_clean(self) -> bool:
        return not self.bad_statuses and not self.socket_errors


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk sends: a file with gateway tokens, one with the body, to which path, and with which headers."""

    tokens: Path
    body: Path
    path: str
    gateway_header: str
    scheme: str
    headers: Mapping[str, str]
    connections: int


def find(program: str) -> str:
    """The program's path. Raises WrkError."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise WrkError(f"{program} is not installed; the benchmark needs nginx, wrk and taskset")
    return found


def command(url: str, load: Load, *, seconds: float, core: int) -> list[str]:
    return [
        find("taskset"),
        *("-c", str(core)),
        find("wrk"),
        "-t1",
        f"-c{load.connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout=30s",
        *("-s", str(SCRIPT)),
        url,
    ]


def run(url: str, load: Load, *, seconds: float, core: int) -> WrkResult:
    """Load `url` for so long. Raises WrkError."""
    environ = {
        **os.environ,
        "BENCH_TOKENS": str(load.tokens),
        "BENCH_BODY": str(load.body),
        "BENCH_PATH": load.path,
        "BENCH_GATEWAY_HEADER": load.gateway_header,
        "BENCH_SCHEME": load.scheme,
        "BENCH_HEADERS": "".join(f"{name}: {value}\n" for name, value in load.headers.items()),
    }
    finished = subprocess.run(
        command(url, load, seconds=seconds, core=core),
        env=environ,
        capture_output=True,
        text=True,
        timeout=seconds + STARTS_AND_ENDS_WITHIN_S,
        check=False,
    )
    if finished.returncode:
        raise WrkError(f"wrk ended with status {finished.returncode}: {finished.stderr or finished.stdout}")
    return parse(finished.stdout)


def parse(output: str) -> WrkResult:
    """The line that our script writes at the end. Raises WrkError."""
    for line in output.splitlines():
        if line.startswith(MARK):
            return WrkResult(**json.loads(line.removeprefix(MARK)))
    raise WrkError(f"wrk wrote no figures: {output!r}")
