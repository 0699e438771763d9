"""Playwright and Puppeteer as agents use them, through the proxy, with a real Chromium behind each session."""

import base64
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metering.tasks import spawn
from tests.integration.test_browser_sessions import assert_settled, created
from tests.integration.test_browser_sockets import endpoint, until
from tests.support.browserbase import House, house
from tests.support.chromium import chromium
from tests.support.sdk import BROWSERBASE, PLAYWRIGHT, PUPPETEER, Sdk, running_sdk

pytestmark = pytest.mark.heavy

PNG = b"\x89PNG\r\n\x1a\n"
PICTURE_BYTES_MIN = 1_000_000
"""Of a page that no compression makes shorter."""
FILE = bytes(range(256)) * 4_000
PAGE = """<!doctype html><title>{title}</title><a id="file" href="file.bin" download>a file</a><canvas></canvas><script>
const canvas = document.querySelector("canvas"), [width, height] = [canvas.width, canvas.height] = [600, 800];
const drawing = canvas.getContext("2d"), picture = drawing.createImageData(width, height);
for (let at = 0, noise = 1; at < picture.data.length; at++)
  picture.data[at] = at % 4 == 3 ? 255 : (noise = (noise * 16807) % 2147483647) & 255;
drawing.putImageData(picture, 0, 0);
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: it would go to the tests' own stderr."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two pages and a file, on a server of their own."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("first", "second"):
        (folder / f"{name}.html").write_text(PAGE.format(title=f"The {name} page"))
    (folder / "file.bin").write_bytes(FILE)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Sdk]:
    with running_sdk("1-js", PLAYWRIGHT) as running:
        yield running


@pytest.fixture
async def at(tmp_path) -> AsyncIterator[House]:
    """Whatever a test leaves behind is billed to its end."""
    async with house(tmp_path, chromium=chromium(), env={"BROWSERBASE_LINGER_S": "0"}) as running:
        yield running
        await until(lambda: not any(session.is_live for session in running.vendor.sessions))
        await assert_settled(running, running.ada)


async def visited(at: House, client: Sdk, url: str, site: str, saved: Path) -> None:
    """All of it works, and went through the proxy."""
    pages = {"first": f"{site}/first.html", "second": f"{site}/second.html"}
    said = await client("visit", "", "", endpoint=url, link="#file", saved=str(saved), **pages)
    told = said.result()
    assert told["titles"] == ["The first page", "The second page"]
    picture = base64.b64decode(told["picture"])
    assert (picture[:8], len(picture) > PICTURE_BYTES_MIN) == (PNG, True), len(picture)
    if client.name == "1-js":
        assert (told["name"], saved.read_bytes()) == ("file.bin", FILE)
    await until(lambda: at.gateway.lines[-1]["operation"].startswith("GET /connect"))
    line = at.gateway.lines[-1]
    assert (line["outcome"], line["bytes_down"] > PICTURE_BYTES_MIN) == ("completed", True), line


async def test_a_session_of_the_sdk_is_driven_by_its_connect_url(at, playwright, site, tmp_path):
    with running_sdk("1-sync", BROWSERBASE) as sdk:
        session = (await sdk("create", at.gateway.url, at.ada.token)).result()
    await visited(at, playwright, session["connectUrl"], site, tmp_path / "saved")
    assert [one.id for one in at.vendor.sessions] == [session["id"]]


async def test_a_ticket_is_asked_for_its_websocket_first(at, playwright, site, tmp_path):
    session = await created(at.ada)
    await visited(at, playwright, session["connectUrl"].replace("ws://", "http://"), site, tmp_path / "saved")
    assert len(at.vendor.sessions) == 1


@pytest.mark.parametrize("scheme", ["ws", "http"])
async def test_whoever_knows_nothing_but_the_gateway_token_drives_a_browser(
    at, playwright, site, tmp_path, scheme
):
    url = endpoint(at, at.ada).replace("ws://", f"{scheme}://")
    await visited(at, playwright, url, site, tmp_path / "saved")
    assert len(at.vendor.sessions) == 1


async def test_puppeteer_drives_a_session(at, site, tmp_path):
    session = await created(at.ada)
    with running_sdk("25-js", PUPPETEER) as puppeteer:
        await visited(at, puppeteer, session["connectUrl"], site, tmp_path / "saved")
    assert len(at.vendor.sessions) == 1


async def test_who_is_let_in_no_longer_is_told_why(at, playwright):
    session = await created(at.ada)
    said = await playwright("connect", "", "", endpoint=session["connectUrl"][:-1] + "!")
    assert "401" in said.error("Error")["message"]
    said = await playwright("connect", "", "", endpoint=endpoint(at, at.ada, sessionId="unknown"))
    assert "404" in said.error("Error")["message"]
    await at.ada.http.post(f"/v1/sessions/{session['id']}", json={"status": "REQUEST_RELEASE"})


async def test_a_user_who_is_disabled_loses_the_browser_at_once(at, playwright, site, tmp_path):
    session, here = await created(at.ada, keepAlive=True, timeout=3_600), tmp_path / "here"
    where = {"endpoint": session["connectUrl"], "first": f"{site}/first.html", "here": str(here)}
    staying = spawn(playwright("stay", "", "", **where), name="staying")
    await until(here.exists)
    await at.gateway.directory.disable("ada")
    assert "has been closed" in (await staying).result()
