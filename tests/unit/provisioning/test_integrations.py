"""A machine's browser context and mailbox, over the simulated vendors: made, made again, lost, refused, taken away."""

import asyncio
import contextlib
import traceback
from dataclasses import dataclass, replace

import httpx
import pytest

from metering.clock import ManualClock
from metering.objects import ObjectId, user_tag
from provisioning.errors import AgainError, Code, FatalError
from provisioning.integrations import (
    AFTER_MAX_S,
    ANSWER_BYTES_MAX,
    QUOTED_CHARS_MAX,
    Integrations,
    NameTakenError,
    Vendor,
    context_object,
    inbox_object,
    pod_object,
    vendor_client,
)
from simulators import agentmail, browserbase
from simulators.agentmail import AgentMailSimulator
from simulators.browserbase import PROJECT_ID, BrowserbaseSimulator
from simulators.vendor import VendorSimulator

START_MS = 1_795_000_000_000
TAG = user_tag("ada")
SILENCE_S = 0.05


@dataclass
class Stage:
    browsers: BrowserbaseSimulator
    mails: AgentMailSimulator
    integrations: Integrations

    @property
    def inboxes(self):
        return list(self.mails.organization.inboxes.values())

    @property
    def pods(self):
        return [pod for pod in self.mails.organization.pods.values() if pod.name == TAG]

    def made(self):
        """How many things there are."""
        return len(self.browsers.contexts), len(self.pods), len(self.inboxes)


def over(browsers, mails, client, **options):
    return Integrations(
        browser=Vendor(browsers.url, browserbase.VENDOR_KEY),
        mail=Vendor(mails.url, agentmail.VENDOR_KEY),
        project_id=PROJECT_ID,
        client=client,
        **options,
    )


@pytest.fixture
async def stage():
    async with (
        BrowserbaseSimulator(clock=ManualClock(START_MS)) as browsers,
        AgentMailSimulator(clock=ManualClock(START_MS)) as mails,
        vendor_client(browsers.url, mails.url) as client,
    ):
        yield Stage(browsers, mails, over(browsers, mails, client))


@dataclass(frozen=True)
class Call:
    """One of the calls: what must be there first, what it asks, and whose it is."""

    name: str
    vendor: str
    refused: Code
    prepares: tuple[str, ...] = ()

    async def prepared(self, stage):
        """What it is asked with."""
        made = {}
        for name in self.prepares:
            arguments = {
                "make_context": ("ada",),
                "make_pod": (TAG,),
                "make_inbox": (made.get("make_pod"), TAG),
            }
            made[name] = await getattr(stage.integrations, name)(*arguments[name])
        last = made[self.prepares[-1]] if self.prepares else None
        return {"make_context": ("ada",), "make_pod": (TAG,), "make_inbox": (last, TAG)}.get(
            self.name, (last,)
        )

    def on(self, stage):
        return getattr(stage.integrations, self.name)

    def simulator(self, stage) -> VendorSimulator:
        return stage.browsers if self.vendor == "Browserbase" else stage.mails

    @property
    def behaviours(self):
        return browserbase if self.vendor == "Browserbase" else agentmail

    @property
    def key(self):
        return self.behaviours.VENDOR_KEY


_BROWSER, _MAIL = ("Browserbase", Code.BROWSER_REFUSED), ("AgentMail", Code.MAIL_REFUSED)
CALLS = (
    Call("make_context", *_BROWSER),
    Call("delete_context", *_BROWSER, ("make_context",)),
    Call("make_pod", *_MAIL),
    Call("make_inbox", *_MAIL, ("make_pod",)),
    Call("delete_inbox", *_MAIL, ("make_pod", "make_inbox")),
    Call("delete_pod", *_MAIL, ("make_pod",)),
)
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
MAKERS = tuple(call for call in CALLS if call.name.startswith("make"))
every_maker = pytest.mark.parametrize("call", MAKERS, ids=lambda call: call.name)


# --- in good times ------------------------------------------------------------------------------------


async def test_a_context_is_made_in_the_project_by_its_name_and_deleted(stage):
    context_id = await stage.integrations.make_context("u-ada-1")
    (context,) = stage.browsers.contexts
    assert (context.id, context.name) == (context_id, "u-ada-1")
    assert stage.browsers.exchanges[0].request.json() == {"name": "u-ada-1", "projectId": PROJECT_ID}
    await stage.integrations.delete_context(context_id)
    assert stage.browsers.contexts == []
    await stage.integrations.delete_context(context_id)


async def test_a_mailbox_is_made_in_a_pod_of_its_users_and_both_are_deleted(stage):
    pod_id = await stage.integrations.make_pod(TAG)
    inbox_id = await stage.integrations.make_inbox(pod_id, TAG)
    (inbox,) = stage.inboxes
    assert (inbox.inbox_id.lower(), inbox.pod_id, inbox.client_id) == (inbox_id, pod_id, f"{TAG}-home")
    assert [pod.client_id for pod in stage.pods] == [TAG]
    await stage.integrations.delete_inbox(inbox_id)
    assert await stage.integrations.delete_pod(pod_id)
    assert stage.made() == (0, 0, 0)
    await stage.integrations.delete_inbox(inbox_id)
    assert await stage.integrations.delete_pod(pod_id)


async def test_a_pod_and_a_mailbox_that_are_made_again_are_the_original(stage):
    pods = {await stage.integrations.make_pod(TAG) for _ in range(3)}
    (pod_id,) = pods
    inboxes = {await stage.integrations.make_inbox(pod_id, TAG) for _ in range(3)}
    assert (len(inboxes), stage.made()) == (1, (0, 1, 1))


async def test_what_is_made_again_at_once_is_made_once(stage):
    pods = await asyncio.gather(*(stage.integrations.make_pod(TAG) for _ in range(8)))
    inboxes = await asyncio.gather(*(stage.integrations.make_inbox(pods[0], TAG) for _ in range(8)))
    assert (len(set(pods)), len(set(inboxes)), stage.made()) == (1, 1, (0, 1, 1))


async def test_a_context_of_a_name_that_there_is_is_nobodys_to_take(stage):
    await stage.integrations.make_context("u-ada-1")
    with pytest.raises(NameTakenError, match="U-Ada-1"):
        await stage.integrations.make_context("U-Ada-1")
    assert stage.made() == (1, 0, 0)


async def test_a_pod_with_a_mailbox_stays(stage):
    pod_id = await stage.integrations.make_pod(TAG)
    await stage.integrations.make_inbox(pod_id, TAG)
    assert not await stage.integrations.delete_pod(pod_id)
    assert stage.made() == (0, 1, 1)


async def test_an_address_is_spelt_in_lower_case_whoever_makes_it_up(stage):
    pod_id = await stage.integrations.make_pod(TAG)
    told = {"inbox_id": "Swift.Wren@AgentMail.to", "pod_id": pod_id, "client_id": f"{TAG}-home"}
    stage.mails.next(agentmail.answers(told))
    assert await stage.integrations.make_inbox(pod_id, TAG) == "swift.wren@agentmail.to"


async def test_ids_stand_in_paths_as_one_segment(stage):
    await stage.integrations.delete_inbox("a/../b?c@x.y")
    assert stage.mails.exchanges[-1].request.target == "/v0/inboxes/a%2F..%2Fb%3Fc%40x.y"


async def test_a_project_that_is_not_given_is_not_named(stage):
    async with vendor_client(stage.browsers.url) as client:
        vendor = Vendor(f"{stage.browsers.url}/", browserbase.VENDOR_KEY)
        await Integrations(browser=vendor, mail=None, project_id="", client=client).make_context("ada")
    assert stage.browsers.exchanges[-1].request.json() == {"name": "ada"}


async def test_a_vendor_that_is_not_configured_is_not_there_and_not_asked(stage):
    async with vendor_client() as client:
        neither = Integrations(browser=None, mail=None, project_id="", client=client)
        assert not neither.has_browser
        assert not neither.has_mail
        with pytest.raises(AssertionError, match="has_browser"):
            await neither.make_context("ada")
        with pytest.raises(AssertionError, match="has_mail"):
            await neither.make_pod(TAG)
    assert stage.integrations.has_browser
    assert stage.integrations.has_mail


def test_objects_are_named_as_the_routes_name_them():
    assert [context_object("c"), pod_object("p"), inbox_object("Wren@agentmail.to")] == [
        ObjectId("browserbase", "context", "c"),
        ObjectId("agentmail", "pod", "p"),
        ObjectId("agentmail", "inbox", "wren@agentmail.to"),
    ]


# --- lost answers -------------------------------------------------------------------------------------


@every_call
@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_lost_answer_is_trouble_that_passes(stage, call, is_reset):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.loses_reply(is_reset=is_reset))
    with pytest.raises(AgainError) as failure:
        await call.on(stage)(*arguments)
    assert (failure.value.code, failure.value.is_retryable) == (Code.PROVIDER_UNAVAILABLE, True)
    if call.name == "make_context":
        with pytest.raises(NameTakenError):
            await call.on(stage)(*arguments)
    else:
        await call.on(stage)(*arguments)
    of_kind = {"context": 0, "pod": 1, "inbox": 2}[call.name.partition("_")[2]]
    assert stage.made()[of_kind] == (1 if call in MAKERS else 0)


# --- refused ------------------------------------------------------------------------------------------

MEANT = [
    (408, Code.PROVIDER_UNAVAILABLE, True),
    (425, Code.PROVIDER_UNAVAILABLE, True),
    (429, Code.PROVIDER_UNAVAILABLE, True),
    (500, Code.PROVIDER_UNAVAILABLE, True),
    (502, Code.PROVIDER_UNAVAILABLE, True),
    (503, Code.PROVIDER_UNAVAILABLE, True),
    (401, Code.PROVIDER_UNAUTHORIZED, True),
    (402, None, True),
    (403, None, True),
    (400, None, False),
    (422, None, False),
]
"""Status, code (None: the vendor's own refusal), whether trying again helps."""


@every_call
@pytest.mark.parametrize(("status", "code", "helps"), MEANT)
async def test_what_a_vendor_answers_is_what_it_means(stage, call, status, code, helps):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.fails(status, message=f"no, {call.key} may not"))
    before = stage.made()
    with pytest.raises((AgainError, FatalError)) as failure:
        await call.on(stage)(*arguments)
    error = failure.value
    assert (error.code, error.is_retryable) == (code or call.refused, helps)
    assert isinstance(error, AgainError) == (code is Code.PROVIDER_UNAVAILABLE)
    assert call.vendor in error.detail
    assert str(status) in error.detail
    assert call.key not in "".join(traceback.format_exception(error))
    assert stage.made() == before


@every_maker
async def test_what_is_not_found_while_something_is_made_is_refused(stage, call):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.fails(404))
    with pytest.raises(FatalError) as failure:
        await call.on(stage)(*arguments)
    assert (failure.value.code, failure.value.is_retryable) == (call.refused, False)


@pytest.mark.parametrize("call", [call for call in CALLS if call.vendor == "AgentMail"], ids=lambda c: c.name)
async def test_mail_in_conflict_is_asked_again(stage, call):
    arguments = await call.prepared(stage)
    stage.mails.next(agentmail.fails(409))
    with pytest.raises(AgainError):
        await call.on(stage)(*arguments)


@every_call
@pytest.mark.parametrize(
    ("told", "after_s"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("86400", AFTER_MAX_S),
        ("-3", 0.0),
        ("inf", None),
        ("Tue, 1 Dec 2026 00:00:00 GMT", None),
    ],
)
async def test_how_long_to_wait_is_taken_from_the_vendor_within_bounds(stage, call, told, after_s):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.fails(429, headers={"retry-after": told}))
    with pytest.raises(AgainError) as failure:
        await call.on(stage)(*arguments)
    assert failure.value.after_s == after_s


async def test_a_full_account_refuses_a_mailbox(stage):
    plan = stage.mails.organization.plan
    stage.mails.organization.plan = replace(plan, inboxes_max=0)
    pod_id = await stage.integrations.make_pod(TAG)
    with pytest.raises(FatalError, match="Inbox limit exceeded") as failure:
        await stage.integrations.make_inbox(pod_id, TAG)
    assert (failure.value.code, failure.value.is_retryable) == (Code.MAIL_REFUSED, True)


async def test_a_wrong_key_is_the_operators_to_mend(stage):
    async with vendor_client() as client:
        wrong = Integrations(
            browser=Vendor(stage.browsers.url, "bb-other"),
            mail=Vendor(stage.mails.url, "am-other"),
            project_id=PROJECT_ID,
            client=client,
        )
        for making in (wrong.make_context("ada"), wrong.make_pod(TAG)):
            with pytest.raises(FatalError) as failure:
                await making
            assert failure.value.code is Code.PROVIDER_UNAUTHORIZED
    assert stage.made() == (0, 0, 0)


@pytest.mark.parametrize("changed", ["client_id", "pod_id"])
async def test_a_mailbox_that_says_it_is_anothers_is_not_taken(stage, changed):
    pod_id = await stage.integrations.make_pod(TAG)
    told = {"inbox_id": "wren@agentmail.to", "pod_id": pod_id, "client_id": f"{TAG}-home", changed: "another"}
    stage.mails.next(agentmail.answers(told))
    with pytest.raises(FatalError) as failure:
        await stage.integrations.make_inbox(pod_id, TAG)
    assert (failure.value.code, failure.value.is_retryable) == (Code.MAIL_REFUSED, False)


async def test_a_mailbox_of_the_user_in_another_pod_is_not_taken(stage):
    organization = stage.mails.organization
    organization.create_inbox(organization.default_pod, {"client_id": f"{TAG}-home"})
    pod_id = await stage.integrations.make_pod(TAG)
    with pytest.raises(FatalError, match="is not of pod_id"):
        await stage.integrations.make_inbox(pod_id, TAG)


async def test_a_vendors_words_are_quoted_in_part(stage):
    stage.browsers.next(browserbase.fails(400, message="x" * 5 * QUOTED_CHARS_MAX))
    with pytest.raises(FatalError) as failure:
        await stage.integrations.make_context("ada")
    assert len(failure.value.detail) < 2 * QUOTED_CHARS_MAX


# --- garbage, silence, and what a client must not do --------------------------------------------------

GARBAGE = {
    "not JSON": b"<html>",
    "empty": b"",
    "no object": b'["ID"]',
    "no id": b"{}",
    "an empty id": b'{"ID":""}',
    "an id that is none": b'{"ID":7}',
    "an id that climbs": b'{"ID":".."}',
    "an id with a line": b'{"ID":"a\\nB=c"}',
    "an endless id": b'{"ID":"%b"}' % (b"a" * 321),
    "too much": b'{"ID":"a","pad":"%b"}' % (b"x" * ANSWER_BYTES_MAX),
}
ID_FIELDS = {"make_context": b"id", "make_pod": b"pod_id", "make_inbox": b"inbox_id"}


@every_maker
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
async def test_an_answer_that_names_nothing_is_trouble_that_passes(stage, call, garbage):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.answers(garbage.replace(b"ID", ID_FIELDS[call.name])))
    with pytest.raises(AgainError) as failure:
        await call.on(stage)(*arguments)
    assert failure.value.code is Code.PROVIDER_UNAVAILABLE


@every_call
@pytest.mark.parametrize("garbage", [b"<html>", b'["ok"]', b'{"pad":"%b"}' % (b"x" * ANSWER_BYTES_MAX)])
async def test_success_in_words_that_are_not_the_vendors_is_none(stage, call, garbage):
    arguments = await call.prepared(stage)
    before = stage.made()
    call.simulator(stage).next(call.behaviours.answers(garbage))
    with pytest.raises(AgainError):
        await call.on(stage)(*arguments)
    assert stage.made() == before


@every_call
async def test_an_answer_that_breaks_off_is_trouble_that_passes(stage, call):
    arguments = await call.prepared(stage)
    call.simulator(stage).next(call.behaviours.answers(b'{"id":"a"}', breaks_after=3))
    with pytest.raises(AgainError):
        await call.on(stage)(*arguments)


@every_call
@pytest.mark.parametrize("where", ["head", "body"])
async def test_silence_is_not_waited_out(stage, call, where):
    arguments = await call.prepared(stage)
    behaviours = call.behaviours
    silent = behaviours.hangs() if where == "head" else behaviours.answers(b'{"id":"a"}', stalls_after=3)
    call.simulator(stage).next(silent)
    async with vendor_client() as client:
        hasty = replace(stage, integrations=over(stage.browsers, stage.mails, client, timeout_s=SILENCE_S))
        with pytest.raises(AgainError, match=r"within 0\.05 s|Timeout"):
            await call.on(hasty)(*arguments)


@every_call
async def test_where_nobody_listens_it_is_trouble_that_passes(stage, call):
    arguments = await call.prepared(stage)
    await call.simulator(stage).stop()
    with pytest.raises(AgainError, match="ConnectError") as failure:
        await call.on(stage)(*arguments)
    assert failure.value.after_s is None


async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere(stage):
    async with BrowserbaseSimulator(api_key=None) as elsewhere:
        stage.browsers.next(
            browserbase.answers(b"", status=307, headers=(("location", f"{elsewhere.url}/v1/contexts"),))
        )
        with pytest.raises(FatalError) as failure:
            await stage.integrations.make_context("ada")
        assert failure.value.code is Code.BROWSER_REFUSED
        assert elsewhere.exchanges == []


async def test_cookies_are_not_kept_and_the_environments_proxy_is_not_asked(stage, monkeypatch):
    async with BrowserbaseSimulator(api_key=None) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        stage.browsers.next(browserbase.fails(500, headers={"set-cookie": "who=operator"}))
        async with vendor_client() as client:
            integrations = over(stage.browsers, stage.mails, client)
            with contextlib.suppress(AgainError):
                await integrations.make_context("ada")
            await integrations.make_context("ada")
        assert proxy.exchanges == []
    assert stage.browsers.exchanges[-1].request.header(b"cookie") == b""


@pytest.mark.parametrize("key", ["", "with space", "line\r\nx-other: 1", "schlüssel"])
async def test_a_key_that_no_header_may_hold_is_refused_at_the_start_and_not_told(key):
    for vendors in (
        {"browser": Vendor("http://x", key), "mail": None},
        {"browser": None, "mail": Vendor("http://x", key)},
    ):
        async with vendor_client() as client:
            with pytest.raises(ValueError, match="the key of") as failure:
                Integrations(**vendors, project_id="", client=client)
        assert not key or key not in str(failure.value)
    assert not key or key not in repr(Vendor("http://x", key))


async def test_certificates_are_trusted_where_an_address_needs_them():
    async with vendor_client("https://api.example") as trusting, vendor_client("http://127.0.0.1") as bare:
        assert isinstance(trusting, httpx.AsyncClient)
        trusted = [
            client._transport._pool._ssl_context.cert_store_stats()["x509_ca"] for client in (trusting, bare)
        ]
    assert trusted[0] > 0 == trusted[1]
