"""What the demo stands on: a folder, an environment built from scratch, simulated vendors, the real server."""

import http.client
import json
import os
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import automna_proxy
from automna_proxy.demo_scenes import OWN_NUMBER, PACE_S, PLAN_TINY
from metering.plans import Plan, load_plans
from metering.store.database import Database
from simulators import agentmail, anthropic, bland, brave, browserbase, fly, gemini, openai
from simulators.server import running_in_thread
from simulators.vendor import VendorSimulator

READY_WITHIN_S = 60.0
POLL_S = 0.02
STOPPED_WITHIN_S = 10.0
COMMAND_TIMEOUT_S = 30.0
GET_TIMEOUT_S = 30.0
LOG_LINES_SHOWN = 15
OK = 200
PLANS_FILE = "plans.toml"
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "NO_COLOR", "TMPDIR", "SYSTEMROOT")
"""All that the demo takes from its caller's environment, beside PYTHONPATH: no key, no proxy, no setting of the
service, no home with somebody's `.curlrc`."""
VENDOR_KEYS = {
    "ANTHROPIC_API_KEY": anthropic.VENDOR_KEY,
    "OPENAI_API_KEY": openai.VENDOR_KEY,
    "GEMINI_API_KEY": gemini.VENDOR_KEY,
    "BRAVE_API_KEY": brave.VENDOR_KEY,
    "AGENTMAIL_API_KEY": agentmail.VENDOR_KEY,
    "BROWSERBASE_API_KEY": browserbase.VENDOR_KEY,
    "BLAND_API_KEY": bland.VENDOR_KEY,
    "FLY_API_TOKEN": fly.VENDOR_KEY,
}
SETTINGS = {
    "DRAIN_NOTICE_S": "0",
    "DRAIN_STREAMS_S": "5",
    "LOG_FORMAT": "console",
    "LOG_LEVEL": "info",
    "BROWSERBASE_PROJECT_ID": browserbase.PROJECT_ID,
    "BLAND_WEBHOOK_SECRET": bland.WEBHOOK_SECRET,
    "FLY_ORG": fly.ORG_SLUG,
    "MACHINE_IMAGE": f"registry.fly.io/agent@sha256:{'5e' * 32}",
    "MACHINES_RECONCILE_EVERY_S": "0",
}
QUICK_FLY = fly.Habits(boot_s=1.0, start_s=0.2, stop_s=0.2, update_s=1.0, gateway_s=0.5)
"""Nobody wants to watch a machine boot."""


Vendor = VendorSimulator[Any, Any]


class StageError(Exception):
    """The demo cannot go on; the message is for the person who watches."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said."""

    status: int
    output: str
    complaint: str


class Stage:
    """A running proxy before simulated vendors, and the commands of its operator."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], vendors: Mapping[str, Vendor], port: int
    ) -> None:
        self.folder = folder
        self._port = port
        self.environment = environment
        self.vendors = vendors
        """By their names in the price list."""
        self.database = Database(folder / "ledger.db")
        self.url = ""
        self.is_kept = False
        """Leave the folder behind: something went wrong, and the log tells more."""
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def is_serving(self) -> bool:
        return self._server is not None and self._server.poll() is None

    @property
    def sent(self) -> list[agentmail.Sent]:
        """Every mail that really went out, in order."""
        mailers = (each for each in self.vendors.values() if isinstance(each, agentmail.AgentMailSimulator))
        return [sent for mailer in mailers for sent in mailer.sent]

    @property
    def calls(self) -> list[bland.Billed]:
        """What every call cost that is over, in the order of their ends."""
        companies = (each for each in self.vendors.values() if isinstance(each, bland.BlandSimulator))
        return [billed for company in companies for billed in company.billed]

    @property
    def browsers(self) -> list[browserbase.Session]:
        """Every browser session that was made, in order."""
        makers = (
            each for each in self.vendors.values() if isinstance(each, browserbase.BrowserbaseSimulator)
        )
        return [session for maker in makers for session in maker.sessions]

    def last_log_lines(self) -> list[str]:
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]

    def start_server(self) -> None:
        """Start `automna-proxy serve`, in a session of its own: Ctrl-C is for us alone."""
        with self.log.open("wb") as log:
            self._server = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                _automna_proxy("serve", "--host", "127.0.0.1", "--port", str(self._port)),
                env=dict(self.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Find out the port and wait for `/readyz`. Raises StageError."""
        until_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until_s:
            if not self.is_serving:
                raise StageError("the server ended before it was ready")
            self.url = self.url or self._url_in_log()
            if self.url and self._is_ready():
                return
            time.sleep(POLL_S)
        raise StageError(f"the server was not ready within {READY_WITHIN_S:g} s")

    def stop_server(self) -> int:
        """Ask it to stop as an operator would; its exit status (0 when it stopped cleanly)."""
        if self._server is None:
            return 0
        if self.is_serving:
            self._server.send_signal(signal.SIGTERM)
        try:
            return self._server.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            return self._server.wait()

    def command(self, words: Sequence[str]) -> Said:
        """Run `automna-proxy WORDS` beside the server, as a person would."""
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            _automna_proxy(*words),
            env=dict(self.environment),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            text=True,
        )
        return Said(done.returncode, done.stdout.rstrip(), done.stderr.rstrip())

    def plan(self, name: str) -> Plan:
        return load_plans(self.folder / PLANS_FILE)[name]

    def meter(self, name: str, gateway_token: str) -> Mapping[str, Any]:
        """What `/api/user/limits` tells of a meter. Raises StageError when it tells nothing."""
        status, body = self._get("/api/user/limits", gateway_token)
        meters: dict[str, dict[str, Any]] = json.loads(body)["meters"] if status == OK else {}
        if name not in meters:
            raise StageError(f"/api/user/limits answers {status} and tells nothing of {name}")
        return meters[name]

    def status_of(self, path: str, gateway_token: str = "") -> int:
        """The status of a GET; 0 when there is no answer."""
        return self._get(path, gateway_token)[0]

    def _get(self, path: str, gateway_token: str) -> tuple[int, bytes]:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=GET_TIMEOUT_S)
        headers = {"authorization": f"Bearer {gateway_token}"} if gateway_token else {}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def _is_ready(self) -> bool:
        return self.status_of("/readyz") == OK

    def _url_in_log(self) -> str:
        found = re.search(r"serving on (http://\S+)", self.log.read_text(errors="replace"))
        return found[1] if found else ""


def _automna_proxy(*words: str) -> list[str]:
    return [sys.executable, "-m", "automna_proxy", *words]


@contextmanager
def staged() -> Iterator[Stage]:
    """Folder, vendors and server; taken down in reverse. The caller waits until the server is ready."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="automna-proxy-demo-"))
        vendors: dict[str, Vendor] = {
            "anthropic": anthropic.AnthropicSimulator(default=anthropic.Behaviour(pace_s=PACE_S)),
            "openai": openai.OpenAISimulator(default=openai.Behaviour(pace_s=PACE_S)),
            "gemini": gemini.GeminiSimulator(default=gemini.Behaviour(pace_s=PACE_S)),
            "brave": brave.BraveSimulator(default=brave.Behaviour(pace_s=PACE_S)),
            "agentmail": agentmail.AgentMailSimulator(),
            "browserbase": browserbase.BrowserbaseSimulator(),
            "bland": _phone_company(),
            "fly": fly.FlySimulator(habits=QUICK_FLY),
        }
        urls = {name: stack.enter_context(running_in_thread(vendor)) for name, vendor in vendors.items()}
        port = _free_port()
        environment = _environment(os.environ, folder, urls, port)
        stack.enter_context(_only(environment))
        stage = Stage(folder, environment, vendors, port)
        stack.callback(_remove, stage)
        _write_plans(folder)
        stack.callback(stage.stop_server)
        stage.start_server()
        yield stage


def _free_port() -> int:
    """The vendors must be told where the proxy is before it is there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _phone_company() -> bland.BlandSimulator:
    company = bland.BlandSimulator(tariff=bland.START)
    company.add_number(OWN_NUMBER, is_byot=False)
    return company


def _environment(
    outer: Mapping[str, str], folder: Path, urls: Mapping[str, str], port: int
) -> dict[str, str]:
    return {
        **{name: outer[name] for name in KEPT if name in outer},
        **_python_path(outer),
        **SETTINGS,
        "HOME": str(folder),
        "DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
        "PLANS_FILE": str(folder / PLANS_FILE),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "FLY_API_URL": urls["fly"],
        "FLY_GATEWAY_URL": f"{urls['fly']}/gateway/{{app}}",
        **VENDOR_KEYS,
        **{f"{name.upper()}_UPSTREAM_URL": url for name, url in urls.items()},
    }


def _python_path(outer: Mapping[str, str]) -> dict[str, str]:
    """What makes our commands run the code that runs here: they start in another folder."""
    paths = [Path(path).absolute() for path in outer.get("PYTHONPATH", "").split(os.pathsep) if path]
    code = Path(automna_proxy.__file__).absolute().parents[1]
    if str(code) not in site.getsitepackages():
        paths.insert(0, code)
    return {"PYTHONPATH": os.pathsep.join(map(str, paths))} if paths else {}


def _write_plans(folder: Path) -> None:
    """The plans that ship with the package, and a tiny one."""
    shipped = resources.files("metering").joinpath("plans.toml").read_text(encoding="utf-8")
    (folder / PLANS_FILE).write_text(shipped + PLAN_TINY, encoding="utf-8")


@contextmanager
def _only(environment: Mapping[str, str]) -> Iterator[None]:
    """Our own process too: the SDK reads keys, base URLs, headers and proxies wherever it finds them."""
    outer = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: value for name, value in environment.items() if name not in VENDOR_KEYS})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(outer)


def _remove(stage: Stage) -> None:
    if not stage.is_kept:
        shutil.rmtree(stage.folder, ignore_errors=True)
