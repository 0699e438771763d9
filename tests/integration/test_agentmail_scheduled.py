"""Drafts that AgentMail sends by itself, later: each is charged once, when it went out, and never when it did not."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from metering.clock import instant
from metering.store.writer import Step, Unit
from proxy.rewriting import tag_of
from simulators.agentmail import (
    WEBHOOK_SECRET,
    AgentMailSimulator,
    drops,
    fails,
    hangs,
    loses_reply,
)
from simulators.script import Gate, WaitFor
from tests.support.agentmail import NANOUSD, house, variables
from tests.support.endings import endings_of
from tests.support.gateway import DatedClock, running_gateway

HOUR_S, DAY_S = 3_600, 86_400
TODAY, TOMORROW = "2026-11-20", "2026-11-21"
PATH = "/api/webhooks/agentmail"


def go(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


@pytest.fixture
def clock():
    return DatedClock(2026, 11, 20)


@asynccontextmanager
async def mailing(tmp_path, clock, *, keeps_labels=True, env=None, **plan):
    """A house whose users each have an inbox, `me` and `you`; vendor and gateway read the same clock."""
    env = {"AGENTMAIL_WEBHOOK_SECRET": WEBHOOK_SECRET, **(env or {})}
    async with (
        AgentMailSimulator(clock=clock, keeps_labels=keeps_labels) as vendor,
        house(tmp_path, vendor, clock=clock, env=env, **plan) as at,
    ):
        await at.ada.inbox("me")
        await at.bob.inbox("you")
        yield at


def ahead(clock, seconds):
    return instant(clock.now_ms() + round(seconds * 1000))


def body_of(clock, seconds=HOUR_S, *, to=("a@x.y", "b@x.y"), **more):
    return {"to": list(to), "subject": "Later", "text": "Hello.", "send_at": ahead(clock, seconds), **more}


async def scheduled(at, body, *, user=None, inbox="me@agentmail.to"):
    """A new draft; its id."""
    answer = await (user or at.ada).http.post(f"/v0/inboxes/{inbox}/drafts", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["draft_id"]


def draft(draft_id, inbox="me@agentmail.to"):
    return f"/v0/inboxes/{inbox}/drafts/{draft_id}"


async def polled(at, seconds=0.0, *, times=1):
    """Once what was asked is written: time passes, the vendor sends what is due, and whatever is due to be asked about
    is."""
    service = at.gateway.service
    for _ in range(times):
        await at.gateway.until(lambda: not service.engine.open_exchanges)
        await service.store.writer.submit(Unit((Step("SELECT 1", ()),)))  # behind all that was queued
        at.gateway.clock.advance(seconds)
        at.vendor.send_due()
        while await service.engine._deferrals.poll_due():
            pass


async def held(at):
    _, held = await at.gateway.spent_and_held("ada")
    return held // NANOUSD


async def until_held(at, recipients, *, step_s=0.0):
    """Ask, with time passing in steps, until so many are held; and then so many still are."""
    async with asyncio.timeout(60):
        while await held(at) != recipients:
            await polled(at, step_s)
            await asyncio.sleep(0.01)
    await polled(at)
    assert await held(at) == recipients


async def open_requests(at):
    row = await at.gateway.service.store.readers.row(
        "SELECT held FROM accounts WHERE owner = 'user:ada' AND meter = 'open_requests'"
    )
    return row[0]


async def notes(at):
    return [entry["notes"] for entry in await at.gateway.entries() if entry["notes"]]


async def assert_sent_and_booked(at, recipients, *, day=TODAY):
    """Ledger, money, the day's quota and what went out agree; nothing is held or remembered."""
    await until_held(at, 0, step_s=10)
    await at.gateway.quiet()
    assert sum(len(one.recipients) for one in at.vendor.sent) == recipients
    assert await at.ada.recipients() == recipients
    assert await at.ada.spent() == recipients * NANOUSD
    assert await at.ada.quota(day) == (recipients, 0)
    async with asyncio.timeout(60):
        while await at.gateway.service.store.readers.row("SELECT 1 FROM deferred_work"):
            await polled(at, 60)
    assert await at.gateway.service.store.readers.row("SELECT 1 FROM deferred_touches") is None


# --- sent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps_labels", [True, False])
async def test_a_scheduled_draft_is_held_until_it_is_sent_and_charged_once(tmp_path, clock, keeps_labels):
    async with mailing(tmp_path, clock, keeps_labels=keeps_labels) as at:
        drafts = at.ada.sdk.inboxes.drafts
        at_time = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(hours=1)
        made = await drafts.create(
            "me@agentmail.to", to=["a@x.y"], cc=["b@x.y"], subject="Later", text="Hi", send_at=at_time
        )
        assert (made.send_status, made.send_at) == ("scheduled", at_time)
        async with asyncio.timeout(60):
            while await open_requests(at):
                await asyncio.sleep(0.01)
        assert (await held(at), await at.ada.quota()) == (2, (0, 2))
        await polled(at, HOUR_S / 2)
        assert (await held(at), at.vendor.sent) == (2, [])
        await polled(at, HOUR_S / 2)
        await polled(at, 10, times=5)
        await assert_sent_and_booked(at, 2)
        basis = [entry["basis"] for entry in await at.gateway.entries() if entry["cost_nanousd"]]
        assert basis == ["reported" if keeps_labels else "estimated"]
        sends = "SELECT user_id, recipient, subject, cost_microdollars FROM email_sends"
        assert await at.gateway.service.store.readers.rows(sends) == [("ada", None, None, 4000)]


async def test_the_webhook_has_it_asked_about_at_once_and_books_nothing_itself(tmp_path, clock):
    """The vendor's clock is a minute ahead of ours: without its word nobody would ask yet."""
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock))
        await polled(at, HOUR_S - 60)
        at.vendor.advance(60)
        (event,) = at.vendor.events.of("message.sent")
        await polled(at)
        assert await held(at) == 2
        assert await at.vendor.deliver(at.gateway.url + PATH, event, times=3) == [204] * 3
        await until_held(at, 0)
        await assert_sent_and_booked(at, 2)


async def test_a_webhook_about_a_mail_that_was_not_sent_charges_nothing(tmp_path, clock):
    """What it says is asked about, and not believed."""
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock))
        await at.ada.send("me@agentmail.to")
        (event,) = at.vendor.events.of("message.sent")
        clock.advance(HOUR_S - 1)
        assert await at.vendor.deliver(at.gateway.url + PATH, event) == [204]
        await polled(at)
        assert await held(at) == 2
        await polled(at, 5, times=2)
        await assert_sent_and_booked(at, 3)


async def test_the_day_on_which_it_is_sent_is_the_day_that_counts_it(tmp_path, clock):
    async with mailing(tmp_path, clock, emails=2) as at:
        await scheduled(at, body_of(clock, DAY_S))
        assert (await at.ada.quota(), await at.ada.quota(TOMORROW)) == ((0, 0), (0, 2))
        assert (await at.ada.send("me@agentmail.to", to=["c@x.y", "d@x.y"])).status_code == 200
        refused = await at.ada.http.post("/v0/inboxes/me@agentmail.to/drafts", json=body_of(clock, DAY_S))
        assert refused.status_code in {402, 429}
        await polled(at, DAY_S + 10)
        await until_held(at, 0, step_s=10)
        assert (await at.ada.quota(), await at.ada.quota(TOMORROW)) == ((2, 0), (2, 0))
        assert (await at.ada.send("me@agentmail.to")).status_code == 402


async def test_racing_schedules_send_no_more_than_the_day_allows(tmp_path, clock):
    async with mailing(tmp_path, clock, emails=10) as at:
        path = "/v0/inboxes/me@agentmail.to/drafts"
        bodies = [body_of(clock, HOUR_S + n, to=[f"r{n}@x.y"]) for n in range(100)]
        answers = await asyncio.gather(*(at.ada.http.post(path, json=body) for body in bodies))
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 90
        await polled(at, HOUR_S + 120, times=2)
        await polled(at, 10, times=2)
        await assert_sent_and_booked(at, 10)


async def test_what_may_not_be_scheduled_is_refused_and_makes_nothing(tmp_path, clock):
    async with mailing(tmp_path, clock, emails=5) as at:
        path = "/v0/inboxes/me@agentmail.to/drafts"
        for wrong in (
            {"send_at": "2026-11-20T12:00:00"},
            {"send_at": "soon"},
            {"send_at": 1},
            {"send_at": ahead(clock, 31 * DAY_S)},
            {"to": []},
            {"labels": ["Automna-req_1"]},
            {"headers": {"Bcc": "x@y.z"}},
        ):
            answer = await at.ada.http.post(path, json={**body_of(clock), **wrong})
            assert answer.status_code == 400, wrong
        six = body_of(clock, to=[f"r{n}@x.y" for n in range(6)])
        assert (await at.ada.http.post(path, json=six)).status_code == 402
        draft_id = await scheduled(at, {"to": ["a@x.y"]})
        for label in ("add_labels", "remove_labels"):
            answer = await at.ada.http.patch(draft(draft_id), json={label: "automna-req_1"})
            assert answer.status_code == 400
        assert [len(inbox.drafts) for inbox in at.vendor.organization.inboxes.values()] == [1, 0]
        await assert_sent_and_booked(at, 0)


async def test_what_became_of_a_schedule_is_told_by_no_label_of_a_users(tmp_path, clock):
    """By a label with the schedule's request a message is known as what came of it, and booked by its own recipients."""
    async with mailing(tmp_path, clock) as at:
        received = at.vendor.receive("me@agentmail.to", "ann@x.y", "Hi", "Hello.")
        inbox = "/v0/inboxes/me@agentmail.to"
        message = f"{inbox}/messages/{quote(received.message_id, safe='')}"
        plain = await scheduled(at, {"to": ["a@x.y"]})
        five = body_of(clock, to=[f"r{number}@x.y" for number in range(5)])
        answer = await at.ada.http.post(f"{inbox}/drafts", json=five)
        label = tag_of(answer.headers["x-automna-request-id"])
        assert label in answer.json()["labels"]
        mail = {"to": ["b@x.y"], "text": "Hello."}
        for method, path, body in (
            ("PATCH", message, {"add_labels": [label]}),
            ("PATCH", message, {"remove_labels": label}),
            ("POST", f"{inbox}/messages/batch-update", {"message_ids": ["x"], "add_labels": ["kept", label]}),
            ("PATCH", f"{inbox}/threads/{received.thread_id}", {"add_labels": [label.upper()]}),
            ("POST", f"{inbox}/messages/send", {**mail, "labels": [label]}),
            ("POST", f"{message}/reply", {**mail, "labels": label}),
            ("POST", f"{message}/reply-all", {**mail, "labels": [label]}),
            ("POST", f"{message}/forward", {**mail, "labels": [label]}),
            ("POST", f"{draft(plain)}/send", {"add_labels": [label]}),
        ):
            answer = await at.ada.http.request(method, path, json=body)
            assert (answer.status_code, "labels" in answer.text) == (400, True), (method, path)
        simple = {"to": "b@x.y", "subject": "Hi", "labels": [label]}
        headers = {"authorization": f"Bearer {at.ada.token}"}
        url = f"{at.gateway.url}/api/user/email/send"
        assert (await at.ada.http.post(url, json=simple, headers=headers)).status_code == 400
        kept = await at.ada.http.patch(message, json={"add_labels": ["kept"]})
        assert "kept" in kept.json()["labels"]
        await polled(at, HOUR_S + 120, times=2)
        await polled(at, 10, times=2)
        await assert_sent_and_booked(at, 5)


async def test_drafts_that_wait_take_no_place_among_the_concurrent_requests(tmp_path, clock):
    async with mailing(tmp_path, clock, concurrent=1) as at:
        for n in range(5):
            draft_id = await scheduled(at, body_of(clock, to=[f"r{n}@x.y"]))
        plain = await scheduled(at, {"to": ["p@x.y"], "subject": "Now"})
        assert (await at.ada.http.post(f"{draft(plain)}/send", json={})).status_code == 200
        assert (await at.ada.http.patch(draft(draft_id), json={"to": ["new@x.y"]})).status_code == 200
        await polled(at, HOUR_S + 5, times=2)
        await polled(at, 10)
        await assert_sent_and_booked(at, 6)


# --- changed, ended ----------------------------------------------------------------------------------------


async def test_a_draft_that_is_deleted_or_unscheduled_before_costs_nothing(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        first, second = [await scheduled(at, body_of(clock)) for _ in range(2)]
        assert (await at.ada.http.delete(draft(first))).status_code == 202
        await until_held(at, 2)
        assert (await at.ada.http.patch(draft(second), json={"send_at": None})).status_code == 200
        await until_held(at, 0)
        assert await at.ada.quota() == (0, 0)
        await polled(at, 2 * HOUR_S)
        await assert_sent_and_booked(at, 0)
        assert await notes(at) == ['["not_done"]'] * 2


async def test_a_draft_is_scheduled_later_and_anew_with_others_at_another_time(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        drafts = at.ada.sdk.inboxes.drafts
        made = await drafts.create("me@agentmail.to", to=["a@x.y"], subject="Later", labels=["kept"])
        at_time = datetime(2026, 11, 21, 12, tzinfo=UTC)
        changed = await drafts.update("me@agentmail.to", made.draft_id, send_at=at_time)
        assert changed.send_at == at_time
        await until_held(at, 1)
        assert await at.ada.quota(TOMORROW) == (0, 1)
        await drafts.update("me@agentmail.to", made.draft_id, cc=["b@x.y", "c@x.y"])
        await until_held(at, 3)
        assert await at.ada.quota(TOMORROW) == (0, 3)
        await drafts.update("me@agentmail.to", made.draft_id, send_at=at_time - timedelta(days=1))
        await at.gateway.until(lambda: at.gateway.service.engine.open_exchanges == 0)
        async with asyncio.timeout(60):
            while await at.ada.quota(TOMORROW) != (0, 0):
                await polled(at)
        assert (await held(at), await at.ada.quota()) == (3, (0, 3))
        await drafts.update("me@agentmail.to", made.draft_id, subject="Other", add_labels=["more"])
        shown = await drafts.get("me@agentmail.to", made.draft_id)
        assert sorted(label for label in shown.labels if not label.startswith("automna-")) == sorted(
            ["draft", "scheduled", "kept", "more"]
        )
        assert len([label for label in shown.labels if label.startswith("automna-")]) == 1
        await polled(at, 13 * HOUR_S, times=2)
        await assert_sent_and_booked(at, 3)


@pytest.mark.parametrize("keeps_labels", [True, False])
async def test_a_scheduled_draft_that_is_sent_at_once_is_charged_once(tmp_path, clock, keeps_labels):
    async with mailing(tmp_path, clock, keeps_labels=keeps_labels) as at:
        draft_id = await scheduled(at, body_of(clock))
        assert (await at.ada.http.post(f"{draft(draft_id)}/send", json={})).status_code == 200
        await polled(at)
        await polled(at, HOUR_S)
        await polled(at, 10, times=4)
        await assert_sent_and_booked(at, 2)


@pytest.mark.parametrize("keeps_labels", [True, False])
async def test_an_inbox_that_is_deleted_takes_its_scheduled_drafts_with_it(tmp_path, clock, keeps_labels):
    async with mailing(tmp_path, clock, keeps_labels=keeps_labels) as at:
        await scheduled(at, body_of(clock))
        assert (await at.ada.http.delete("/v0/inboxes/ME@agentmail.to")).status_code == 202
        await until_held(at, 0)
        await polled(at, HOUR_S)
        await assert_sent_and_booked(at, 0)


async def test_a_draft_that_the_vendor_could_not_send_costs_nothing(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock, to=["blocked@x.y"]))
        await polled(at, HOUR_S + 10)
        await polled(at, 10)
        await assert_sent_and_booked(at, 0)


async def test_a_message_that_was_deleted_at_once_is_charged_all_the_same(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock))
        await polled(at, 1)
        clock.advance(HOUR_S)
        (sent,) = at.vendor.send_due()
        path = f"/v0/inboxes/me@agentmail.to/messages/{sent.message_id}"
        assert (await at.ada.http.delete(path)).status_code == 202
        await polled(at, 10, times=4)
        await assert_sent_and_booked(at, 2)
        assert (await notes(at))[-1] == '["presumed_done"]'


async def test_a_deletion_that_comes_too_late_ends_nothing(tmp_path, clock):
    async with mailing(tmp_path, clock, keeps_labels=False) as at:
        draft_id = await scheduled(at, body_of(clock))
        clock.advance(HOUR_S)
        at.vendor.send_due()
        assert (await at.ada.http.delete(draft(draft_id))).status_code == 404
        await polled(at, 10, times=4)
        await assert_sent_and_booked(at, 2)


# --- lost answers ------------------------------------------------------------------------------------------


LOST = {
    "lost": (loses_reply(), True),
    "reset": (loses_reply(is_reset=True), True),
    "an error after the work": (fails(500, works=True), True),
    "dropped": (drops(), False),
    "an error": (fails(500), False),
    "refused": (fails(403), False),
    "of the request": (fails(422), False),
}


@pytest.mark.parametrize("client_id", [None, "mine"])
@pytest.mark.parametrize("how", LOST)
async def test_a_schedule_whose_answer_was_lost_is_charged_if_it_was_made(tmp_path, clock, how, client_id):
    behaviour, is_made = LOST[how]
    async with mailing(tmp_path, clock) as at:
        more = {} if client_id is None else {"client_id": client_id}
        is_asked_again = how in {"lost", "reset", "dropped"}
        at.vendor.next(*[behaviour] * (2 if is_asked_again else 1))
        answer = await at.ada.http.post("/v0/inboxes/me@agentmail.to/drafts", json=body_of(clock, **more))
        assert answer.status_code >= 400
        await polled(at, 6, times=4)
        await until_held(at, 2 if is_made else 0, step_s=6)
        await polled(at, HOUR_S, times=2)
        await polled(at, 10, times=2)
        await assert_sent_and_booked(at, 2 if is_made else 0)


@pytest.mark.parametrize("how", LOST)
async def test_a_change_whose_answer_was_lost_counts_if_it_was_made(tmp_path, clock, how):
    behaviour, is_made = LOST[how]
    async with mailing(tmp_path, clock) as at:
        draft_id = await scheduled(at, body_of(clock))
        script = iter([None, None, behaviour])
        at.vendor.script = lambda _: next(script, None)
        answer = await at.ada.http.patch(draft(draft_id), json={"cc": ["c@x.y"]})
        assert answer.status_code >= 400
        at.vendor.script = None
        await polled(at, 6, times=4)
        await until_held(at, 3 if is_made else 2, step_s=6)
        await polled(at, HOUR_S, times=2)
        await polled(at, 10, times=2)
        await assert_sent_and_booked(at, 3 if is_made else 2)


@pytest.mark.parametrize("wait_s", [1, HOUR_S])
@pytest.mark.parametrize("how", [loses_reply(), drops(), fails(500, works=True), fails(500)])
async def test_a_deletion_whose_answer_was_lost_ends_it_if_it_was_done(tmp_path, clock, how, wait_s):
    """Asked about before its time, or only after it."""
    async with mailing(tmp_path, clock) as at:
        draft_id = await scheduled(at, body_of(clock))
        at.vendor.next(how)
        assert (await at.ada.http.delete(draft(draft_id))).status_code >= 500
        await polled(at, wait_s)
        await polled(at, 6, times=4)
        await polled(at, HOUR_S, times=2)
        await polled(at, 10, times=2)
        await assert_sent_and_booked(at, sum(len(one.recipients) for one in at.vendor.sent))
        assert len(at.vendor.sent) == (1 if how in (drops(), fails(500)) else 0)


@pytest.mark.parametrize("keeps_labels", [True, False])
@pytest.mark.parametrize("how", [loses_reply(), drops(), fails(500)])
async def test_a_sending_at_once_whose_answer_was_lost_is_charged_once(tmp_path, clock, how, keeps_labels):
    async with mailing(tmp_path, clock, keeps_labels=keeps_labels) as at:
        draft_id = await scheduled(at, body_of(clock))
        script = iter([None, None, how, how])
        at.vendor.script = lambda _: next(script, None)
        assert (await at.ada.http.post(f"{draft(draft_id)}/send", json={})).status_code >= 500
        at.vendor.script = None
        await polled(at, 6, times=4)
        await polled(at, HOUR_S, times=2)
        await polled(at, 10, times=4)
        await assert_sent_and_booked(at, 2)


@pytest.mark.parametrize("how", ["lost", "reset", "dropped", "an error after the work", "an error"])
@pytest.mark.parametrize("wait_s", [0, 6, 60])
async def test_a_schedule_that_is_repeated_as_it_had_no_answer_is_made_once(tmp_path, clock, how, wait_s):
    async with mailing(tmp_path, clock) as at:
        path, body = "/v0/inboxes/me@agentmail.to/drafts", body_of(clock)
        at.vendor.next(*[LOST[how][0]] * 2)
        assert (await at.ada.http.post(path, json=body)).status_code >= 500
        at.vendor.script = None
        await polled(at, wait_s, times=3)
        again = await at.ada.http.post(path, json=body)
        while again.status_code >= 500:  # the vendor's second failure
            again = await at.ada.http.post(path, json=body)
        assert again.status_code == 200
        assert "client_id" not in again.json()
        (kept,) = at.vendor.organization.inboxes["me@agentmail.to"].drafts.values()
        assert kept.client_id
        shown = await at.ada.http.get(draft(again.json()["draft_id"]))
        assert "client_id" not in shown.json()
        assert kept.client_id.partition("-")[0] not in shown.text
        await until_held(at, 2, step_s=6)
        other = await scheduled(at, body)
        assert other != kept.draft_id, "once it is answered, the same again is another"
        await until_held(at, 4)
        await polled(at, HOUR_S + 5)
        await assert_sent_and_booked(at, 4)


@pytest.mark.parametrize("client_id", [None, "mine"])
async def test_a_schedule_without_an_answer_that_is_repeated_after_its_time_sends_nothing_more(
    tmp_path, clock, client_id
):
    async with mailing(tmp_path, clock) as at:
        path, body = "/v0/inboxes/me@agentmail.to/drafts", body_of(clock, client_id=client_id)
        at.vendor.next(loses_reply(), loses_reply())
        assert (await at.ada.http.post(path, json=body)).status_code == 502
        await polled(at, HOUR_S + 5)
        await assert_sent_and_booked(at, 2)
        again = await at.ada.http.post(path, json=body)
        assert again.status_code == 409
        assert "is done" in again.json()["message"]
        await polled(at, 10)
        await assert_sent_and_booked(at, 2)


@pytest.mark.parametrize("client_id", [None, "mine"])
@pytest.mark.parametrize("how", [loses_reply(), drops()])
async def test_a_schedule_that_may_be_sent_before_it_is_repeated_is_first_asked_about(
    tmp_path, clock, how, client_id
):
    """Its name is free again as soon as it is sent, so the same once more would be sent once more."""
    async with mailing(tmp_path, clock) as at:
        path, body = "/v0/inboxes/me@agentmail.to/drafts", body_of(clock, 20, client_id=client_id)
        at.vendor.next(how)
        assert (await at.ada.http.post(path, json=body)).status_code == 502
        clock.advance(21)
        running = await at.ada.http.post(path, json=body)
        assert (running.status_code, running.headers["retry-after"]) == (409, "1")
        await until_held(at, 0, step_s=6)
        again = await at.ada.http.post(path, json=body)
        assert again.status_code == (200 if how == drops() else 409)
        await polled(at, 10)
        await assert_sent_and_booked(at, 2)


async def test_a_client_id_that_is_given_again_schedules_once(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        first = await scheduled(at, body_of(clock, client_id="mine"))
        assert await scheduled(at, body_of(clock, client_id="mine")) == first
        await until_held(at, 2)
        await polled(at, HOUR_S + 5, times=2)
        await assert_sent_and_booked(at, 2)


async def test_a_vendor_that_is_gone_around_its_time_is_asked_until_it_is_back(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock))
        at.vendor.script = lambda _: fails(503)
        await polled(at, HOUR_S + 5)
        await polled(at, 100, times=5)
        assert await held(at) == 2
        at.vendor.script = None
        await polled(at, 1_000)
        await assert_sent_and_booked(at, 2)


async def test_a_vendor_that_never_says_what_became_of_it_is_given_up(tmp_path, clock):
    """Its hold expires a day after its time as an estimate; it is not asked about for ever."""
    async with mailing(tmp_path, clock) as at:
        await scheduled(at, body_of(clock))
        at.vendor.script = lambda _: fails(503)
        await polled(at, HOUR_S + DAY_S + 60)
        await at.gateway.quiet()
        (entry,) = [entry for entry in await at.gateway.entries() if entry["cost_nanousd"]]
        assert (entry["kind"], entry["basis"], entry["cost_nanousd"]) == ("expire", "estimated", 2 * NANOUSD)
        assert await at.ada.quota() == (2, 0)
        await polled(at, 7 * DAY_S)
        async with asyncio.timeout(60):
            while await at.gateway.service.store.readers.row("SELECT 1 FROM deferred_work"):
                await polled(at, 60)


async def test_a_client_that_leaves_while_it_schedules_has_scheduled_once(tmp_path, clock):
    gate = Gate()
    async with mailing(tmp_path, clock, env={"DRAIN_AFTER_CLIENT_LEFT_S": "0"}) as at:
        at.vendor.next(hangs(gate=gate))
        making = go(at.ada.http.post("/v0/inboxes/me@agentmail.to/drafts", json=body_of(clock)))
        await gate.reached()
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        gate.open()
        await at.gateway.until(lambda: at.gateway.service.engine.open_exchanges == 0)
        await polled(at, 6)
        assert await held(at) == 2
        await polled(at, HOUR_S + 5, times=2)
        await assert_sent_and_booked(at, 2)


async def test_a_schedule_of_a_worker_that_was_taken_for_dead_gives_its_place_back_once(tmp_path, clock):
    """Another worker adopts it while the vendor thinks, finds nothing of it in the end, and books that."""
    gate = Gate()
    async with mailing(tmp_path, clock, env={"HEARTBEAT_S": "600", "WORKER_DEAD_AFTER_S": "1200"}) as at:
        at.vendor.next(fails(422, before=(WaitFor(gate),)))
        making = go(at.ada.http.post("/v0/inboxes/me@agentmail.to/drafts", json=body_of(clock)))
        await gate.reached()
        assert await open_requests(at) == 1
        async with running_gateway(tmp_path, env=variables(at.vendor), clock=clock):
            async with asyncio.timeout(60):
                while await open_requests(at):
                    await asyncio.sleep(0.01)
        gate.open()
        assert (await making).status_code == 422
        assert await open_requests(at) == 0
        await until_held(at, 0, step_s=6)
        await assert_sent_and_booked(at, 0)


# --- made from messages ------------------------------------------------------------------------------------


async def test_drafts_that_answer_and_forward_are_made_sent_and_scheduled(tmp_path, clock):
    async with mailing(tmp_path, clock) as at:
        drafts, inbox = at.ada.sdk.inboxes.drafts, "me@agentmail.to"
        asked = at.vendor.receive(inbox, "Ann <ann@x.y>", "Q", to=[inbox, "b@x.y"], cc=["c@x.y"])
        reply = await drafts.create(inbox, in_reply_to=asked.message_id, text="A")
        assert (reply.to, reply.in_reply_to) == (["Ann <ann@x.y>"], asked.message_id)
        await drafts.send(inbox, reply.draft_id)
        at_time = datetime(2026, 11, 20, 1, tzinfo=UTC)
        everyone = await drafts.create(
            inbox, in_reply_to=asked.message_id, reply_all=True, text="A", send_at=at_time
        )
        forward = await drafts.create(inbox, forward_of=asked.message_id, to=["d@x.y"])
        await drafts.update(inbox, forward.draft_id, send_at=at_time)
        assert everyone.send_status == "scheduled"
        await until_held(at, 4)
        await polled(at, HOUR_S + 5)
        assert [len(one.recipients) for one in at.vendor.sent] == [1, 3, 1]
        await assert_sent_and_booked(at, 5)


async def test_a_draft_that_names_nobody_counts_all_who_had_the_message(tmp_path, clock):
    """Where the vendor finds out whom it goes to only when it sends it."""
    async with mailing(tmp_path, clock) as at:
        inbox = "me@agentmail.to"
        asked = at.vendor.receive(inbox, "ann@x.y", "Q", to=[inbox, "b@x.y"], cc=["c@x.y"])
        made = await scheduled(at, {"in_reply_to": asked.message_id})
        (kept,) = at.vendor.organization.inboxes[inbox].drafts.values()
        kept.content = kept.content.__class__(subject="A")
        at_time = {"send_at": ahead(clock, HOUR_S)}
        assert (await at.ada.http.patch(draft(made), json=at_time)).status_code == 200
        assert await held(at) == 3
        assert (await at.ada.http.delete(draft(made))).status_code == 202
        await polled(at)
        await assert_sent_and_booked(at, 0)


@pytest.mark.parametrize("field", ["in_reply_to", "forward_of"])
async def test_a_message_of_anothers_or_of_another_inbox_does_not_exist(tmp_path, clock, field):
    async with mailing(tmp_path, clock) as at:
        theirs = at.vendor.receive("you@agentmail.to", "ann@x.y", "Secret", "Secret.")
        await at.ada.inbox("second")
        own = at.vendor.receive("second@agentmail.to", "ann@x.y", "Own", "Own.")
        path = "/v0/inboxes/me@agentmail.to/drafts"
        for message_id in (
            theirs.message_id,
            own.message_id,
            "<none@x>",
            ".",
            "..",
            "../../you@agentmail.to",
        ):
            answer = await at.ada.http.post(path, json={"to": "a@x.y", field: message_id})
            assert answer.status_code == 404, message_id
            assert "Secret" not in answer.text
        for wrong in (1, [theirs.message_id], {"a": 1}):
            assert (await at.ada.http.post(path, json={"to": "a@x.y", field: wrong})).status_code == 400
        both = {"in_reply_to": theirs.message_id, "forward_of": theirs.message_id}
        assert (await at.ada.http.post(path, json=both)).status_code == 400
        assert all(not inbox.drafts for inbox in at.vendor.organization.inboxes.values())
        await assert_sent_and_booked(at, 0)


# --- for a user who may do nothing any more --------------------------------------------------------------


def deletions(at, draft_id):
    return sum(
        (one.method, one.path.endswith(draft_id)) == ("DELETE", True) for one in list(at.vendor.requests)
    )


@pytest.mark.parametrize("keeps_labels", [True, False])
@pytest.mark.parametrize("trouble", [None, loses_reply(), fails(503)], ids=["told", "reply lost", "fails"])
async def test_what_is_scheduled_for_a_disabled_user_is_not_sent(tmp_path, clock, keeps_labels, trouble):
    async with mailing(tmp_path, clock, keeps_labels=keeps_labels) as at:
        mine = await scheduled(at, body_of(clock))
        theirs = await scheduled(at, body_of(clock, to=("c@x.y",)), user=at.bob, inbox="you@agentmail.to")
        async with asyncio.timeout(60):
            while await open_requests(at):
                await asyncio.sleep(0.01)
        if trouble is not None:
            at.vendor.next(trouble)
        await at.gateway.directory.disable("ada")
        async with asyncio.timeout(30):
            while not deletions(at, mine):
                await asyncio.sleep(0.01)
            while await held(at):
                await polled(at, 31)
                await endings_of(at.gateway).end_abandoned()
        await polled(at, HOUR_S, times=3)
        assert [tuple(one.recipients) for one in at.vendor.sent] == [("c@x.y",)]
        assert await at.ada.spent() == 0
        assert (await at.ada.quota(), deletions(at, theirs)) == ((0, 0), 0)
