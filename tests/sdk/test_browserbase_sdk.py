"""The real `browserbase` of Python and `@browserbasehq/sdk` of JavaScript with nothing changed but base URL and key."""

import base64
import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from simulators.browserbase import PROJECT_ID, VENDOR_KEY
from tests.integration.test_browser_sessions import assert_settled
from tests.support.browserbase import MOUNT, House, User, house
from tests.support.cdp import cdp
from tests.support.sdk import BROWSERBASE, Said, Sdk, running_sdk


@pytest.fixture(scope="module", params=["1-sync", "1-async", "2-js"])
def sdk(request: pytest.FixtureRequest) -> Iterator[Sdk]:
    with running_sdk(request.param, BROWSERBASE) as running:
        yield running


@dataclass
class Client:
    """The SDK in a user's hands."""

    sdk: Sdk
    user: User

    async def __call__(self, do: str, **given: Any) -> Any:
        return (await self.said(do, **given)).result()

    async def said(self, do: str, **given: Any) -> Said:
        return await self.sdk(do, self.user.gateway.url, self.user.token, **given)


@pytest.fixture
async def at(tmp_path) -> AsyncIterator[House]:
    """Whatever a test leaves behind is billed to its end."""
    async with house(tmp_path) as running:
        yield running
        for session in running.vendor.sessions:
            running.vendor.project.release(session)
        await assert_settled(running, running.ada)


@pytest.fixture
def ada(sdk, at) -> Client:
    return Client(sdk, at.ada)


async def test_a_session_is_made_read_listed_and_released(at, ada):
    made = await ada("create", keep_alive=True, api_timeout=3_600, user_metadata={"task": "read"})
    (real,) = at.vendor.sessions
    assert (real.keep_alive, real.expires_ms - real.created_ms) == (True, 3_600_000)
    assert real.fields["projectId"] == PROJECT_ID
    assert made["userMetadata"] == {"task": "read"}
    host = at.gateway.url.removeprefix("http://")
    assert made["connectUrl"].startswith(f"ws://{host}{MOUNT}/connect/")
    read = await ada("retrieve", of=made["id"])
    assert (read["status"], read["expiresAt"]) == ("RUNNING", made["expiresAt"])
    running = {"status": "RUNNING"}
    assert [one["id"] for one in await ada("list", **running)] == [made["id"]]
    assert (await ada("release", of=made["id"]))["status"] == "COMPLETED"
    assert await ada("list", **running) == []
    ended = await ada("retrieve", of=made["id"])
    assert ended["endedAt"] == ended["updatedAt"]
    assert {one.header(b"x-bb-api-key") for one in at.vendor.requests} == {VENDOR_KEY.encode()}


async def test_what_a_browser_leaves_behind_is_read(at, ada):
    session = await ada("create", keep_alive=True)
    async with cdp(session["connectUrl"]) as client:
        page = await client.attach()
        await client.call("Page.navigate", page, url="https://shop.example/")
        (shown,) = (await ada("debug", of=session["id"]))["pages"]
    assert shown["url"] == "https://shop.example/"
    assert "Page.navigate" in [one["method"] for one in await ada("logs", of=session["id"])]
    assert {one["sessionId"] for one in await ada("recording", of=session["id"])} == {session["id"]}
    assert (await ada("replays", of=session["id"]))["pageCount"] == 1
    assert [one["status"] for one in (await ada("movies", of=session["id"]))["downloads"]] == [
        "NOT_REQUESTED"
    ]
    await ada("make_movies", of=session["id"])
    (movie,) = (await ada("movies", of=session["id"]))["downloads"]
    assert (movie["status"], movie["downloadUrl"].startswith("http")) == ("COMPLETED", True)


async def test_files_go_up_and_come_down_byte_for_byte(at, ada):
    session = await ada("create", keep_alive=True)
    (real,) = at.vendor.sessions
    text = "Grüße, \r\n--boundary\0" * 100
    await ada("upload", of=session["id"], name="süß.txt", text=text)
    assert list(real.uploads.values()) == [text.encode()]
    files = {"a.bin": bytes(range(256)) * 1_000, "b.txt": b""}
    for name, content in files.items():
        at.vendor.add_download(real, name, content)
    answer = base64.b64decode(await ada("downloads", of=session["id"]))
    with zipfile.ZipFile(io.BytesIO(answer)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


async def test_contexts_and_extensions_are_made_used_and_deleted(at, ada):
    context = await ada("create_context", name="shop")
    assert (await ada("context", of=context["id"]))["name"] == "shop"
    extension = await ada("create_extension", name="blocker.zip", text="PK")
    assert (await ada("extension", of=extension["id"]))["fileName"] == "blocker.zip"
    session = await ada(
        "create",
        browser_settings={"context": {"id": context["id"], "persist": True}},
        extension_id=extension["id"],
    )
    assert session["contextId"] == context["id"]
    await ada("delete_context", of=context["id"])
    await ada("delete_extension", of=extension["id"])
    for do, of in (("context", context["id"]), ("extension", extension["id"])):
        (await ada.said(do, of=of)).error("NotFoundError")
    assert (at.vendor.project.contexts, at.vendor.project.extensions) == ({}, {})


async def test_what_is_another_users_is_not_found(at, sdk, ada):
    bob = Client(sdk, at.bob)
    session = await ada("create", keep_alive=True)
    context = await ada("create_context", name="shop")
    extension = await ada("create_extension", name="a.zip", text="PK")
    asked = len(at.vendor.requests)
    for do, given in (
        *(
            (do, {"of": session["id"]})
            for do in (
                "retrieve",
                "release",
                "debug",
                "logs",
                "recording",
                "movies",
                "make_movies",
                "replays",
            )
        ),
        ("downloads", {"of": session["id"]}),
        ("upload", {"of": session["id"], "name": "a", "text": "b"}),
        ("context", {"of": context["id"]}),
        ("delete_context", {"of": context["id"]}),
        ("extension", {"of": extension["id"]}),
        ("delete_extension", {"of": extension["id"]}),
        ("create", {"browser_settings": {"context": {"id": context["id"]}}}),
        ("create", {"extension_id": extension["id"]}),
    ):
        assert (await bob.said(do, **given)).error("NotFoundError")["status"] == 404, do
    assert len(at.vendor.requests) == asked
    assert await bob("list") == []
    assert at.vendor.sessions[0].is_live
    assert await bob("create_context", name="shop"), "names are each user's own"
