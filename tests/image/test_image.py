"""The Dockerfile's steps, executed; and what they make, run as an engine would run it."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from automna_proxy.container import SERVICE_ID
from automna_proxy.settings import table
from scripts.image_root import Builder, Image, added_bytes
from simulators.anthropic import VENDOR_KEY, AnthropicSimulator
from tests.support.gateway import messages_body

pytestmark = pytest.mark.image

WITHIN_S = 60.0
IMAGE_BYTES_MAX = 64 * 1024 * 1024
"""Beyond the base. What grows past it should be worth it."""
PLACES_TO_WRITE = ("data", "tmp")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if os.geteuid() != 0:
        pytest.skip("executing the Dockerfile's steps needs root: they chroot, chown and change users")
    folder = tmp_path_factory.mktemp("image")
    yield Builder(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def served(builder: Builder) -> Image:
    """The image that `docker build` makes."""
    return builder.build(builder.default_target)


@pytest.fixture(scope="module")
def flown(builder: Builder) -> Image:
    """The image for platforms whose volumes belong to root."""
    return builder.build("fly")


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The `/data` of the image that the test names, as the image has it; afterwards as it was."""
    image: Image = request.getfixturevalue(request.param)
    folder = image.root / "data"
    found = folder.stat()
    yield folder
    shutil.rmtree(folder)
    folder.mkdir(mode=stat.S_IMODE(found.st_mode))
    os.chown(folder, found.st_uid, found.st_gid)


def fresh_volume(folder: Path) -> None:
    """As a platform mounts one: ext4's, and root's."""
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    (folder / "lost+found").mkdir(mode=0o700)


def said(image: Image, *words: str) -> tuple[int, str, str]:
    """A command in the image, to its end: exit status, answer, and what it said beside."""
    process = image.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answer, beside = process.communicate(timeout=WITHIN_S)
    return process.returncode, answer.decode().strip(), beside.decode()


def ok(image: Image, *words: str) -> str:
    status, answer, beside = said(image, *words)
    assert status == 0, beside
    return answer


class Running:
    """The image's server."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    def log(self) -> str:
        return self._log.read_text()

    async def until_it_serves(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not (found := re.search(r"serving on (http://[0-9.:]+)", self.log())):
                assert self.process.poll() is None, self.log()
                await asyncio.sleep(0.05)
            self.url = found[1]
            while not await self._is_ready():
                await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(f"{self.url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

    def facts(self) -> dict[str, str]:
        """proc(5) of the process that the engine started: it is the server itself, nothing stands between."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return {name: " ".join(value.split()) for name, value in re.findall(r"(\w+):(.*)", text)}

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, WITHIN_S)


@asynccontextmanager
async def running(image: Image, folder: Path, upstream: str, *more: str) -> AsyncIterator[Running]:
    """The image's own command, on a free port of the loopback interface."""
    words = [{"0.0.0.0": "127.0.0.1", "8080": "0"}.get(word, word) for word in image.cmd]
    assert words == ["serve", "--host", "127.0.0.1", "--port", "0"]
    environment = {
        "ANTHROPIC_API_KEY": VENDOR_KEY,
        "ANTHROPIC_UPSTREAM_URL": upstream,
        "DRAIN_NOTICE_S": "0",
    }
    with (folder / "log").open("wb") as log:
        process = image.start(*words, *more, env=environment, stdout=log, stderr=log, start_new_session=True)
    server = Running(process, folder / "log")
    try:
        await server.until_it_serves()
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicSimulator]:
    """Outside of the image, as vendors are."""
    async with AnthropicSimulator() as simulator:
        yield simulator


async def serves_a_request(server: Running, image: Image) -> None:
    await asyncio.to_thread(ok, image, "user", "add", "alice", "--plan", "pro")
    token = await asyncio.to_thread(ok, image, "token", "create", "alice")
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as client:
        answer = await client.post(
            f"{server.url}/api/llm/v1/messages",
            headers={"x-api-key": token, "anthropic-version": "2023-06-01"},
            json=messages_body(stream=True),
        )
    assert answer.status_code == 200
    assert b"message_stop" in answer.content


def tree(root: Path) -> dict[str, tuple[int, ...]]:
    """Every file outside of the places to write: kind and mode, owner, size, time."""
    found = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in PLACES_TO_WRITE]
        for name in (*folders, *names):
            path = Path(folder, name)
            facts = path.lstat()
            found[str(path)] = (
                *(facts.st_mode, facts.st_uid, facts.st_size if not stat.S_ISDIR(facts.st_mode) else 0),
                facts.st_mtime_ns,
            )
    return found


def assert_powerless(facts: dict[str, str]) -> None:
    """The service's user in every way, in no further group, with no capability."""
    assert facts["Uid"] == facts["Gid"] == " ".join([str(SERVICE_ID)] * 4)
    assert facts["Groups"] in {"", str(SERVICE_ID)}
    assert (int(facts["CapPrm"], 16), int(facts["CapEff"], 16)) == (0, 0)


@pytest.mark.parametrize("data", ["served"], indirect=True)
async def test_the_image_serves_as_nobody_writes_its_store_only_and_stops_with_0(
    served: Image, data: Path, tmp_path: Path, vendor: AnthropicSimulator
) -> None:
    """On a new named volume of Docker's, which has the owner of the image's folder."""
    before = tree(served.root)
    assert served.user == (SERVICE_ID, SERVICE_ID)
    async with running(served, tmp_path, vendor.url) as server:
        assert_powerless(server.facts())
        await serves_a_request(server, served)
        assert await server.stop() == 0, server.log()
    assert ok(served, "ledger", "verify").startswith("clean: ")
    assert [path.name for path in data.glob("*.db")] == ["automna-proxy.db"]
    assert tree(served.root) == before


@pytest.mark.parametrize("data", ["flown"], indirect=True)
async def test_the_image_for_a_volume_of_roots_takes_the_volume_and_steps_down(
    flown: Image, data: Path, tmp_path: Path, vendor: AnthropicSimulator
) -> None:
    fresh_volume(data)
    before = tree(flown.root)
    assert flown.user == (0, 0)
    async with running(flown, tmp_path, vendor.url, "--workers", "2") as server:
        assert_powerless(server.facts())
        # Its commands are started as root too: by the operator's console.
        await serves_a_request(server, flown)
        assert await server.stop() == 0, server.log()
    owners = {path.name: path.stat().st_uid for path in data.iterdir()}
    assert owners.pop("lost+found") == 0
    assert owners
    assert set(owners.values()) == {data.stat().st_uid} == {SERVICE_ID}
    assert stat.S_IMODE((data / "automna-proxy.db").stat().st_mode) == 0o600
    assert ok(flown, "ledger", "verify").startswith("clean: ")
    assert tree(flown.root) == before


@pytest.mark.parametrize("data", ["flown"], indirect=True)
def test_a_backup_is_made_and_put_back_by_the_operators_console(flown: Image, data: Path) -> None:
    fresh_volume(data)
    ok(flown, "user", "add", "alice")
    ok(flown, "backup", "/data/copy.db")
    ok(flown, "user", "add", "bob")
    ok(flown, "restore", "/data/copy.db", "--force")
    users = json.loads(ok(flown, "user", "list", "--json"))["users"]
    assert [user["id"] for user in users] == ["alice"]
    assert {path.stat().st_uid for path in data.glob("*.db*")} == {SERVICE_ID}


@pytest.mark.parametrize("data", ["served"], indirect=True)
def test_the_image_that_is_never_root_says_which_folder_it_cannot_write(served: Image, data: Path) -> None:
    fresh_volume(data)
    status, _, output = said(served, *served.cmd)
    assert status != 0
    assert "the store at /data/automna-proxy.db cannot be used" in output
    assert "Traceback" not in output


def test_the_image_holds_the_service_and_nothing_to_build_or_test_with(
    builder: Builder, served: Image
) -> None:
    (packages,) = served.root.glob("opt/automna-proxy/lib/python3.*/site-packages")
    present = {path.name for path in packages.iterdir()}
    assert {"automna_proxy", "metering", "uvicorn", "orjson"} <= present
    unwanted = ("pip", "setuptools", "anthropic", "pytest", "mypy", "tests", "bench")
    assert [name for name in unwanted if name in present] == []
    sources = [path for path in packages.rglob("*.py") if path.parent.name != "__pycache__"]
    uncompiled = [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))]
    assert (len(sources) > 500, uncompiled) == (True, [])
    size = added_bytes(served, served.root.parent / "base")
    assert size < IMAGE_BYTES_MAX, f"{size:,} bytes"


def test_every_variable_of_the_image_is_a_setting_or_pythons(served: Image) -> None:
    settings = {row.variable for row in table()}
    assert {name for name in served.env if not name.startswith("PYTHON")} - settings == {"PATH"}
