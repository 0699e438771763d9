"""An SDK in a process of its own, in whatever interpreter has it, called one call at a time."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import INSTALLED, node

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "sdk" / "scripts"
ANSWERS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Package:
    """A vendor's SDKs: the current one of Python is in this interpreter, the `old` major in an environment of its
    own, that of JavaScript in the folder `npm`. `mount`: where it finds the proxy's surface."""

    name: str
    mount: str
    npm: Path
    old: str

    @property
    def old_environment(self) -> Path:
        return ROOT / f".venv-{self.name}-{self.old}"


ANTHROPIC = Package("anthropic", "/api/llm", Path("@anthropic-ai", "sdk"), old="0")
OPENAI = Package("openai", "/api/openai/v1", Path("openai"), old="2")
AGENTMAIL = Package("agentmail", "/api/agentmail", Path("agentmail"), old="none")
BROWSERBASE = Package("browserbase", "/api/browserbase", Path("@browserbasehq", "sdk"), old="none")
PLAYWRIGHT = Package("playwright", "", Path("playwright-core"), old="none")
PUPPETEER = Package("puppeteer", "", Path("puppeteer-core"), old="none")
GEMINI = Package("gemini", "/api/gemini", Path("@google", "genai"), old="none")


@dataclass(frozen=True)
class Said:
    """What came of one call of the SDK."""

    returned: Any = None
    raised: Mapping[str, Any] | None = None
    seen: list[str] = field(default_factory=list)
    """What the caller had got before the end: pieces of text, or types of events."""
    waits: list[float] = field(default_factory=list)
    """Before each further try, in seconds: what it would have waited, if it was called without pauses."""
    elapsed_s: float = 0.0

    def result(self) -> Any:
        assert self.raised is None, self.raised
        return self.returned

    def error(self, kind: str) -> Mapping[str, Any]:
        """The exception, which the caller could have caught as `kind`."""
        assert self.raised is not None, f"{kind} expected, returned {self.returned}"
        assert kind in self.raised["classes"], self.raised
        return self.raised


class Sdk:
    """One SDK in one mode. Not in this process: synchronous calls need the service's event loop to run."""

    def __init__(self, package: Package, name: str, process: "subprocess.Popen[str]") -> None:
        self.name = name
        self.is_current = not name.startswith(f"{package.old}-")
        self._mount = package.mount
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    async def __call__(
        self,
        do: str,
        url: str,
        token: str,
        *,
        credential: str = "api_key",
        client: Mapping[str, Any] | None = None,
        pauses: bool = True,
        **arguments: Any,
    ) -> Said:
        """Call the SDK as `driving.py` says; `client` are options of the client. Without `pauses` it tries again
        at once (sync Python and JavaScript only)."""
        asked = {
            "do": do,
            "url": f"{url}{self._mount}",
            "token": token,
            "credential": credential,
            "client": dict(client or {}),
            "pauses": pauses,
            "with": arguments,
        }
        return Said(**await self._exchange(json.dumps(asked) + "\n"))

    async def _exchange(self, line: str) -> Any:
        def exchange() -> str:
            self._stdin.write(line)
            self._stdin.flush()
            return self._stdout.readline()

        # Killed, it answers with nothing, and the thread ends: a hanging SDK fails its tests and no others.
        timer = asyncio.get_running_loop().call_later(ANSWERS_WITHIN_S, self._process.kill)
        try:
            answer = await asyncio.to_thread(exchange)
        finally:
            timer.cancel()
        assert answer, f"the driver of {self.name} ended, or said nothing for {ANSWERS_WITHIN_S:g} s"
        return json.loads(answer)


@contextmanager
def running_sdk(name: str, package: Package = ANTHROPIC) -> Iterator[Sdk]:
    """By major and mode: `2-sync`, `2-async`, `0-sync`, `0-async`, or `1-js`, that of JavaScript. Skips, or fails in
    CI, where it is not installed."""
    version, mode = name.split("-")
    process = subprocess.Popen(
        _driver(package, version, mode),
        env={"PATH": os.environ["PATH"]},  # no key, no base URL, no proxy
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())["version"]
        assert told.startswith(f"{version}."), told
        yield Sdk(package, name, process)
    finally:
        process.kill()
        with suppress(BrokenPipeError):
            process.communicate()


def _driver(package: Package, version: str, mode: str) -> list[Path | str]:
    driver = SCRIPTS / f"{package.name}_driver.py"
    if mode == "js":
        return [node(), driver.with_suffix(".cjs"), INSTALLED / package.npm]
    is_old = version == package.old
    return [_old_interpreter(package.old_environment) if is_old else Path(sys.executable), driver, mode]


def _old_interpreter(environment: Path) -> Path:
    if not (environment / ".installed").exists():
        complaint = f"{environment} is missing: run make {environment.name}/.installed"
        if os.environ.get("CI") == "true":
            pytest.fail(complaint)
        pytest.skip(complaint)
    return environment / "bin" / "python"
