"""AgentMail through the proxy on real sockets: what works, what is charged and counted, and what is sent once."""

import asyncio
import base64
import signal
from contextlib import suppress
from urllib.parse import quote

import httpx
import pytest

from proxy.rewriting import request_of
from simulators.agentmail import (
    PLAIN,
    AgentMailSimulator,
    awkward_message_id,
    breaks_after,
    drops,
    fails,
    hangs,
    loses_reply,
)
from simulators.script import Gate
from tests.support.agentmail import NANOUSD, agentmail, house, variables
from tests.support.process import serving
from tests.support.raw_http import raw_request


def go(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        yield simulator


def pods_made(vendor):
    """Beside the account's own."""
    return [pod for pod in vendor.organization.pods.values() if pod is not vendor.organization.default_pod]


def asked(vendor, method, path):
    return [one for one in vendor.requests if (one.method, one.path) == (method, path)]


# --- pods and inboxes -----------------------------------------------------------------------------------


async def test_racing_first_requests_make_one_pod_for_each_user(tmp_path, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate))
    async with house(tmp_path, vendor) as at:
        mine = [go(at.ada.http.get("/v0/inboxes")) for _ in range(20)]
        await gate.reached()
        theirs = [go(at.bob.http.get("/v0/threads")) for _ in range(20)]
        await asyncio.gather(*theirs)
        gate.open()
        answers = await asyncio.gather(*mine, *theirs)
        assert {answer.status_code for answer in answers} == {200}
        assert len(asked(vendor, "POST", "/v0/pods")) == 2
        assert len(pods_made(vendor)) == 2


async def test_two_workers_make_one_pod(tmp_path, vendor):
    env = variables(vendor)
    async with serving(tmp_path, upstream="http://127.0.0.1:1", workers=2, env=env) as server:
        async with server.directory() as directory:
            await directory.add_user("ada", plan="test")
            token, _ = await directory.create_token("ada")
        headers = {"authorization": f"Bearer {token}", "connection": "close"}

        async def first():
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                return await client.get(f"{server.url}/api/agentmail/v0/inboxes", headers=headers)

        while server.rows("SELECT COUNT(DISTINCT worker_id) FROM reservations") != [(2,)]:
            answers = await asyncio.gather(*(first() for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
        assert len(pods_made(vendor)) == 1
        await server.assert_verified()


async def test_a_pod_whose_answer_was_lost_is_the_one_that_is_made_again(tmp_path, vendor):
    vendor.next(loses_reply())
    async with house(tmp_path, vendor) as at:
        assert (await at.ada.http.get("/v0/inboxes")).status_code == 502
        assert (await at.ada.http.get("/v0/inboxes")).status_code == 200
        assert len(pods_made(vendor)) == 1


async def test_inboxes_are_made_listed_changed_and_deleted(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inboxes = at.ada.sdk.inboxes
        made = await inboxes.create(request={"username": "Wren+1", "display_name": "W", "client_id": "c 1"})
        assert (made.inbox_id, made.client_id) == ("Wren+1@agentmail.to", "c 1")
        again = await inboxes.create(request={"username": "Wren+1", "client_id": "c 1"})
        assert again.inbox_id == made.inbox_id
        for shown in (
            (await inboxes.list()).inboxes,
            (await inboxes.search(q="wren")).inboxes,
            [await inboxes.get("wREN+1@AGENTMAIL.to")],
            [await inboxes.update(made.inbox_id, display_name="V")],
            [await at.ada.sdk.pods.inboxes.get(made.pod_id, made.inbox_id)],
            (await at.ada.sdk.pods.inboxes.list(made.pod_id)).inboxes,
        ):
            assert [(one.inbox_id, one.client_id) for one in shown] == [(made.inbox_id, "c 1")]
        assert vendor.organization.inboxes["wren+1@agentmail.to"].pod_id == made.pod_id
        below = await at.ada.sdk.pods.inboxes.create(made.pod_id, username="second", client_id="c2")
        assert (below.pod_id, below.client_id) == (made.pod_id, "c2")
        await inboxes.delete(made.inbox_id)
        assert [one.inbox_id for one in (await inboxes.list()).inboxes] == [below.inbox_id]
        assert len(pods_made(vendor)) == 1
        await at.ada.assert_booked(0)


async def test_an_inbox_whose_answer_was_lost_is_asked_for_again_and_made_once(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        await at.ada.http.get("/v0/inboxes")
        for body in (None, {"display_name": "W"}, {"client_id": "mine"}):
            vendor.next(loses_reply())
            answer = await at.ada.http.post("/v0/inboxes", **({} if body is None else {"json": body}))
            assert answer.status_code == 200
            first, second = (one.json() for one in vendor.requests[-2:])
            assert first == second
            assert request_of(first["client_id"]) == (
                answer.headers["x-automna-request-id"] if body is None or "client_id" not in body else None
            )
            assert answer.json().get("client_id") == (body or {}).get("client_id")
        assert len(vendor.organization.inboxes) == 3
        listed = (await at.ada.sdk.inboxes.list()).inboxes
        assert [one.client_id for one in listed] == ["mine", None, None]


async def test_a_user_has_so_many_inboxes_and_a_deleted_one_makes_room(tmp_path, vendor):
    async with house(tmp_path, vendor, env={"AGENTMAIL_INBOXES_PER_USER": "2"}) as at:
        for name in ("a1", "a2"):
            await at.ada.inbox(name)
        full = await at.ada.http.post("/v0/inboxes", json={"username": "a3"})
        assert full.status_code == 403
        assert "2" in full.json()["message"]
        assert await at.bob.inbox("b1")
        assert (await at.ada.http.delete("/v0/inboxes/A1@agentmail.to")).status_code == 202
        assert await at.ada.inbox("a3")
        assert await at.ada.http.delete("/v0/inboxes/a3@agentmail.to")
        assert await at.ada.inbox("a1"), "an address that was hers is hers again"
        assert (await at.ada.http.post("/v0/inboxes", json={})).status_code == 403


async def test_a_deletion_whose_answer_was_lost_makes_room_when_it_is_repeated(tmp_path, vendor):
    async with house(tmp_path, vendor, env={"AGENTMAIL_INBOXES_PER_USER": "1"}) as at:
        inbox = await at.ada.inbox("wren")
        vendor.next(loses_reply())
        assert (await at.ada.http.delete(f"/v0/inboxes/{inbox}")).status_code == 502
        assert (await at.ada.http.delete(f"/v0/inboxes/{inbox}")).status_code == 404
        assert await at.ada.inbox("lynx")


async def test_racing_creations_make_no_more_inboxes_than_a_user_may_have(tmp_path, vendor):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        await at.ada.inbox("first")
        vendor.script = lambda request: hangs(gate=gate) if request.method == "POST" else PLAIN
        making = [go(at.ada.http.post("/v0/inboxes", json={"username": f"i{n}"})) for n in range(20)]
        await at.gateway.until(lambda: sum(task.done() for task in making) == 18)
        gate.open()
        answers = await asyncio.gather(*making)
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [403] * 18
        assert len(vendor.organization.inboxes) == 3


# --- mail -------------------------------------------------------------------------------------------------


async def test_mail_is_sent_read_answered_and_forwarded(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox, messages = await at.ada.inbox("me"), at.ada.sdk.inboxes.messages
        file = {"filename": "a.txt", "content": base64.b64encode(b"abc").decode()}
        sent = await messages.send(inbox, to=["a@b.c"], subject="Hi", text="Text", attachments=[file])
        read = await messages.get(inbox, sent.message_id)
        assert (read.from_, read.to, read.text) == (inbox, ["a@b.c"], "Text")
        attachment_id = read.attachments[0].attachment_id
        attachment = await messages.get_attachment(inbox, sent.message_id, attachment_id)
        async with httpx.AsyncClient(trust_env=False) as anybody:
            assert (await anybody.get(attachment.download_url)).content == b"abc"
        assert (await messages.get_raw(inbox, sent.message_id)).size == read.size
        received = vendor.receive(inbox, "Ann <ann@x.y>", "Question", cc=["bob@x.y"])
        assert [one.message_id for one in (await messages.list(inbox, labels=["received"])).messages] == [
            received.message_id
        ]
        assert (await messages.search(inbox, q="question")).messages
        assert (await messages.batch_get(inbox, message_ids=[received.message_id])).count == 1
        labelled = await messages.update(
            inbox, received.message_id, add_labels=["read"], remove_labels="unread"
        )
        assert labelled.labels == ["received", "read"]
        await messages.reply(inbox, received.message_id, text="Answer")
        await messages.reply_all(inbox, received.message_id, text="Answer")
        await messages.forward(inbox, received.message_id, to=["cee@x.y", "dee@x.y"])
        assert [one.recipients for one in vendor.sent[1:]] == [
            ("ann@x.y",),
            ("ann@x.y", "bob@x.y"),
            ("cee@x.y", "dee@x.y"),
        ]
        threads = at.ada.sdk.threads
        assert {one.thread_id for one in (await threads.list()).threads} == {
            received.thread_id,
            sent.thread_id,
        }
        assert (await threads.get(received.thread_id)).message_count == 4
        assert (await at.ada.sdk.inboxes.threads.get(inbox, received.thread_id)).message_count == 4
        await at.ada.sdk.inboxes.threads.update(inbox, received.thread_id, add_labels=["kept"])
        await messages.delete(inbox, sent.message_id)
        with pytest.raises(agentmail.errors.NotFoundError):
            await messages.get(inbox, sent.message_id)
        await at.ada.assert_booked(sum(len(one.recipients) for one in vendor.sent))


async def test_drafts_are_made_changed_sent_and_sent_once(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox, drafts = await at.ada.inbox("me"), at.ada.sdk.inboxes.drafts
        file = {"filename": "a.txt", "content": base64.b64encode(b"abc").decode()}
        draft = await drafts.create(inbox, to=["a@b.c"], subject="Hi", client_id="first", attachments=[file])
        assert draft.client_id == "first"
        again = await drafts.create(inbox, to=["a@b.c"], subject="Hi", client_id="first")
        assert again.draft_id == draft.draft_id
        changed = await drafts.update(inbox, draft.draft_id, cc=["d@e.f"])
        assert changed.client_id == "first"
        attachment_id = changed.attachments[0].attachment_id
        assert (await drafts.get_attachment(inbox, draft.draft_id, attachment_id)).size == 3
        assert [one.draft_id for one in (await at.ada.sdk.drafts.list()).drafts] == [draft.draft_id]
        assert (await at.ada.sdk.drafts.get(draft.draft_id)).client_id == "first"
        sent = await drafts.send(inbox, draft.draft_id, idempotency_key="k")
        assert await drafts.send(inbox, draft.draft_id, idempotency_key="k") == sent
        assert (len(vendor.sent), (await drafts.list(inbox)).count) == (1, 0)
        await at.ada.assert_booked(2)


async def test_a_draft_that_is_changed_while_it_is_sent_is_not_sent_for_less(tmp_path, vendor):
    """Between the look at whom it goes to and its sending."""
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        path = f"/v0/inboxes/{inbox}/drafts"
        draft = (await at.ada.http.post(path, json={"to": "a@b.c", "subject": "x"})).json()
        path = f"{path}/{draft['draft_id']}"
        more = {"to": ["a@b.c", "d@e.f", "g@h.i"]}

        vendor.next(hangs(gate=gate))  # what is looked up is as it was, and comes late
        sending = go(at.ada.http.post(f"{path}/send", json={}))
        await gate.reached()
        assert (await at.ada.http.patch(path, json=more)).status_code == 200
        gate.open()
        assert (await sending).status_code == 409
        assert vendor.sent == []
        await at.ada.assert_booked(0)

        gate = Gate()
        vendor.next(PLAIN, PLAIN, hangs(gate=gate, works=False))
        sending = go(at.ada.http.post(f"{path}/send", json={}))
        await gate.reached()
        changing = await at.ada.http.patch(path, json={"bcc": "j@k.l"})
        assert (changing.status_code, changing.headers["retry-after"]) == (409, "1")
        gate.open()
        assert (await sending).status_code == 503

        gate = Gate()
        vendor.next(PLAIN, PLAIN, hangs(gate=gate))
        changing = go(at.ada.http.patch(path, json={"bcc": "j@k.l"}))
        await gate.reached()
        assert (await at.ada.http.post(f"{path}/send", json={})).status_code == 409
        gate.open()
        assert (await changing).status_code == 200
        assert (await at.ada.http.post(f"{path}/send", json={})).status_code == 200
        await at.ada.assert_booked(4)


async def test_pages_are_walked(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox, other = await at.ada.inbox("me"), await at.bob.inbox("other")
        made = [vendor.receive(inbox, "ann@x.y", str(number)).message_id for number in range(5)]
        for number in range(5):
            vendor.receive(other, "ann@x.y", str(number))
        for listing in (
            lambda **more: at.ada.sdk.inboxes.messages.list(inbox, **more),
            at.ada.sdk.threads.list,
        ):
            found, token, pages = [], None, 0
            while not pages or token is not None:
                page = await listing(limit=2, page_token=token, ascending=True)
                items = getattr(page, "messages", None) or page.threads
                assert page.count == len(items)
                found += [getattr(one, "message_id", None) or one.last_message_id for one in items]
                token, pages = page.next_page_token, pages + 1
            assert (found, pages) == (made, 3)


AWKWARD = {
    "<CAF/+=a b@mail.x>": "<CAF/+=a%20b@mail.x>",
    "<encoded@x>": "%3Cencoded@x%3E",
    **{
        message_id: message_id
        for message_id in (
            "<Plain.1@Mail.X>",
            "<a/b/c@x>",
            "<a/reply@x>/reply-all",
            "<ünïcode @x>",
            "<semi;colon,comma&and=is'quote@x>",
        )
    },
}
"""Ids that the SDK for Python sends, and what is given to it: it encodes `<`, `>` and space, and what is encoded
already passes as it is."""
MORE_AWKWARD = (*AWKWARD, "<CAF%2F@x>", "%3Cencoded@x%3E", "send", "<trailing/@x>/", "<question?and#hash@x>")
"""Those that only a client can send that encodes all."""


async def with_awkward(at, message_id):
    inbox = await at.ada.inbox("Me+x")
    at.vendor.receive(inbox, "Ann <ann@x.y>", "decoy", message_id="<decoy@x>")
    at.vendor.receive(inbox, "Ann <ann@x.y>", "Awkward", message_id=message_id)
    return inbox


async def assert_reached(at, inbox, message_id):
    messages = at.vendor.organization.inboxes[inbox.lower()].messages
    assert "read" in messages[message_id].labels
    assert "read" not in messages["<decoy@x>"].labels
    assert [one.origin.via for one in at.vendor.sent] == ["reply", "reply-all", "forward"]
    assert {one.content.subject for one in at.vendor.sent} == {"Re: Awkward", "Fwd: Awkward"}
    await at.ada.assert_booked(3)


@pytest.mark.parametrize(("message_id", "given"), AWKWARD.items())
async def test_message_ids_of_the_sdk_reach_the_right_message(tmp_path, vendor, message_id, given):
    async with house(tmp_path, vendor) as at:
        inbox, messages = await with_awkward(at, message_id), at.ada.sdk.inboxes.messages
        assert (await messages.get(inbox, given)).subject == "Awkward"
        assert (await messages.get_raw(inbox, given)).message_id == message_id
        await messages.update(inbox, given, add_labels=["read"])
        await messages.reply(inbox, given, text="Answer")
        await messages.reply_all(inbox, given, text="Answer")
        await messages.forward(inbox, given, to="cee@x.y")
        await assert_reached(at, inbox, message_id)


@pytest.mark.parametrize("message_id", MORE_AWKWARD)
async def test_encoded_message_ids_go_up_as_they_came(tmp_path, vendor, message_id):
    async with house(tmp_path, vendor) as at:
        inbox = await with_awkward(at, message_id)
        path = f"/v0/inboxes/{quote(inbox, safe='')}/messages/{quote(message_id, safe='')}"

        async def ask(method, action="", body=b""):
            headers = [(b"authorization", b"Bearer " + at.ada.token.encode())]
            headers += [(b"content-type", b"application/json")] if body else []
            target = f"/api/agentmail{path}{action}".encode()
            answer = await raw_request(at.gateway.url, method, target, headers, body)
            assert answer.status == 200
            assert vendor.requests[-1].target == path + action
            return answer.json()

        assert (await ask("GET"))["subject"] == "Awkward"
        assert (await ask("GET", "/raw"))["message_id"] == message_id
        await ask("PATCH", "", b'{"add_labels":["read"]}')
        await ask("POST", "/reply", b"{}")
        await ask("POST", "/reply-all", b"{}")
        await ask("POST", "/forward", b'{"to":"cee@x.y"}')
        await assert_reached(at, inbox, message_id)


async def test_ids_that_the_vendor_itself_makes_awkward_work_by_the_sdk(tmp_path):
    async with AgentMailSimulator(message_ids=awkward_message_id) as vendor, house(tmp_path, vendor) as at:
        inbox, messages = await at.ada.inbox("Foo+1"), at.ada.sdk.inboxes.messages
        sent = await messages.send(inbox.upper(), to="a@b.c", subject="Hi")
        assert (await messages.get(inbox.swapcase(), sent.message_id)).subject == "Hi"
        received = vendor.receive(inbox, "ann@x.y", "Question", in_reply_to=sent.message_id)
        await messages.reply(inbox.lower(), received.message_id, text="Answer")
        await messages.delete(inbox, sent.message_id)
        await at.ada.assert_booked(2)


# --- what is booked ---------------------------------------------------------------------------------------


RECIPIENTS = (
    ({"to": "a@b.c"}, 1),
    ({"to": "A <a@b.c>, d@e.f"}, 2),
    ({"to": ["a@b.c", "d@e.f, g@h.i"], "cc": "j@k.l", "bcc": ["m@n.o"]}, 5),
    ({"bcc": ["m@n.o"]}, 1),
    ({"to": '"Doe, John" <a@b.c>'}, 1),
    ({"to": ["a@b.c", "a@b.c"]}, 2),
    ({"to": "a@b.c", "reply_to": ["x@y.z", "u@v.w"]}, 1),
    ({"to": "a@b.c", "cc": None, "bcc": []}, 1),
)


@pytest.mark.parametrize(("fields", "number"), RECIPIENTS)
async def test_every_recipient_costs_and_counts(tmp_path, vendor, fields, number):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        answer = await at.ada.http.post(f"/v0/inboxes/{inbox}/messages/send", json={**fields, "subject": "x"})
        assert answer.status_code == 200
        assert len(vendor.sent[0].recipients) == number
        await at.ada.assert_booked(number)
        entry = (await at.gateway.entries())[-1]
        assert (entry["outcome"], entry["cost_nanousd"]) == ("completed", number * NANOUSD)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"to": []},
        {"to": ""},
        {"to": {"email": "a@b.c"}},
        {"to": [["a@b.c"]]},
        {"to": 1},
        {"cc": [None]},
        {"to": ",".join(f"a{number}@b.c" for number in range(1_001))},
    ],
)
async def test_recipients_that_cannot_be_counted_are_refused(tmp_path, vendor, fields):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        answer = await at.ada.http.post(f"/v0/inboxes/{inbox}/messages/send", json=fields)
        assert answer.status_code in {400, 422}
        assert vendor.sent == []
        await at.ada.assert_booked(0)


@pytest.mark.parametrize(
    ("given", "status"),
    [(fails(400), 400), (fails(422), 422), (fails(404), 404), (fails(500), 500), (fails(503), 503)],
)
async def test_what_fails_costs_nothing(tmp_path, vendor, given, status):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(given)
        assert (await at.ada.send(inbox)).status_code == status
        await at.ada.assert_booked(0)


async def test_of_a_hundred_racing_sends_exactly_the_quota_is_sent_and_booked(tmp_path, vendor):
    gate = Gate()
    async with house(tmp_path, vendor, emails=10) as at:
        inbox = await at.ada.inbox("me")
        vendor.script = lambda _: hangs(gate=gate)
        sending = [go(at.ada.send(inbox, subject=f"number {number}")) for number in range(100)]
        await at.gateway.until(lambda: sum(task.done() for task in sending) == 90)
        gate.open()
        answers = await asyncio.gather(*sending)
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 90
        assert len(vendor.sent) == 10
        await at.ada.assert_booked(10)
        vendor.script = None
        spent = await at.ada.send(inbox)
        assert spent.status_code == 402
        assert "10 of 10 emails" in spent.json()["message"]
        at.gateway.clock.advance(86_400)
        assert (await at.ada.send(inbox)).status_code == 200


async def test_an_answer_to_all_that_would_exceed_the_day_is_refused(tmp_path, vendor):
    async with house(tmp_path, vendor, emails=3) as at:
        inbox = await at.ada.inbox("me")
        many = vendor.receive(inbox, "ann@x.y", "Q", to=[inbox, "b@x.y", "c@x.y"], cc=["d@x.y"])
        reply_all = f"/v0/inboxes/{inbox}/messages/{quote(many.message_id)}/reply-all"
        refused = await at.ada.http.post(reply_all, json={"text": "A"})
        assert refused.status_code == 402
        assert vendor.sent == []
        reply = reply_all.removesuffix("-all")
        assert (await at.ada.http.post(reply, json={"text": "A", "reply_all": True})).status_code == 402
        assert (await at.ada.http.post(reply, json={"text": "A"})).status_code == 200
        await at.ada.assert_booked(1)


async def test_an_answer_to_all_counts_whom_it_goes_to_and_not_oneself(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        many = vendor.receive(inbox, "A <ann@x.y>", "Q", to=[f"Me <{inbox.upper()}>", "b@x.y"], cc=["d@x.y"])
        path = f"/v0/inboxes/{inbox}/messages/{quote(many.message_id)}/reply-all"
        assert (await at.ada.http.post(path, json={"text": "A"})).status_code == 200
        assert len(vendor.sent[0].recipients) == 3
        await at.ada.assert_booked(3)


async def test_a_reply_to_ones_own_message_counts_those_it_went_to(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me", display_name="Me")
        sent = (await at.ada.send(inbox, to=["a@b.c", "d@e.f", "g@h.i"])).json()
        path = f"/v0/inboxes/{inbox}/messages/{quote(sent['message_id'])}/reply"
        assert (await at.ada.http.post(path, json={"text": "More"})).status_code == 200
        assert len(vendor.sent[1].recipients) == 3
        await at.ada.assert_booked(6)


# --- once -------------------------------------------------------------------------------------------------


LOST = {
    "lost": (loses_reply(),),
    "reset": (loses_reply(is_reset=True),),
    "lost twice": (loses_reply(), loses_reply()),
    "dropped": (drops(),),
    "dropped twice": (drops(), drops()),
    "lost, then an error": (loses_reply(), fails(500)),
    "lost, then too fast": (loses_reply(), fails(429)),
    "lost, then a conflict": (loses_reply(), fails(409)),
    "an error after the work": (fails(500, works=True),),
    "errors after the work": (fails(503, works=True), fails(500)),
}


@pytest.mark.parametrize("key", [None, "my-key"])
@pytest.mark.parametrize("how", LOST)
async def test_with_the_sdks_own_retries_a_message_is_sent_and_booked_once(tmp_path, vendor, how, key):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(*LOST[how])
        sent = await at.ada.sdk.inboxes.messages.send(
            inbox, to=["a@b.c", "d@e.f"], subject="Hi", **({} if key is None else {"idempotency_key": key})
        )
        assert [one.message_id for one in vendor.sent] == [sent.message_id]
        await at.ada.assert_booked(2)


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_message_whose_answer_broke_off_is_sent_and_booked_once(tmp_path, vendor, key):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(breaks_after(5))
        with pytest.raises(httpx.TransportError):
            await at.ada.send(inbox, key=key)
        again = await at.ada.send(inbox, key=key)
        assert again.json() == vendor.sent[0].as_json()
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 409, 429, 500, 503])
async def test_an_error_after_a_lost_answer_tells_nothing(tmp_path, vendor, status):
    """It is booked as what may have been done, and whoever repeats it gets what was."""
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(loses_reply(), fails(status))
        assert (await at.ada.send(inbox)).status_code >= 400
        await at.ada.assert_booked(1)
        assert (await at.gateway.entries())[-1]["basis"] == "estimated"
        assert (await at.ada.send(inbox)).json() == vendor.sent[0].as_json()
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_error_about_the_request_itself_tells_that_nothing_was_done(tmp_path, vendor, status):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(drops(), fails(status))
        assert (await at.ada.send(inbox)).status_code == status
        await at.ada.assert_booked(0)


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_message_whose_answer_is_lost_for_good_is_booked_and_its_repetition_is_free(
    tmp_path, vendor, key
):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(loses_reply(), loses_reply())
        assert (await at.ada.send(inbox, key=key)).status_code == 502
        await at.ada.assert_booked(1)
        again = await at.ada.send(inbox, key=key)
        assert again.json() == vendor.sent[0].as_json()
        await at.ada.assert_booked(1)
        third = await at.ada.send(inbox, key=key)
        assert third.status_code == 200
        assert len(vendor.sent) == (2 if key is None else 1), "once it is answered, the same again is another"
        await at.ada.assert_booked(len(vendor.sent))


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_vendor_that_is_gone_when_it_is_asked_again_may_have_sent_it(tmp_path, vendor, key):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(hangs(gate=gate))
        sending = go(at.ada.send(inbox, key=key))
        await gate.reached()
        port = int(vendor.url.rpartition(":")[2])
        await vendor.stop()
        assert (await sending).status_code == 502
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)
        await vendor.start(port=port)
        again = await at.ada.send(inbox, key=key)
        assert again.json() == vendor.sent[0].as_json()
        await at.ada.assert_booked(1)


async def test_a_key_is_for_one_request(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        first = await at.ada.send(inbox, key="k")
        assert first.status_code == 200
        for other in ({"to": "b@x.y"}, {"subject": "Other"}, {"text": "x"}):
            assert (await at.ada.send(inbox, key="k", **other)).status_code == 409
        again = await at.ada.send(inbox, key="k")
        assert again.json() == first.json()
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


async def test_a_repetition_is_free_even_where_nothing_is_left(tmp_path, vendor):
    async with house(tmp_path, vendor, emails=1) as at:
        inbox = await at.ada.inbox("me")
        first = await at.ada.send(inbox, key="k")
        assert (await at.ada.send(inbox, key="other")).status_code == 402
        assert (await at.ada.send(inbox, key="k")).json() == first.json()
        await at.ada.assert_booked(1)


async def test_a_key_whose_request_was_refused_is_free_for_another(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        assert (await at.ada.send(inbox, to="blocked@x.y", key="k")).status_code == 403
        assert (await at.ada.send(inbox, key="k")).status_code == 200
        await at.ada.assert_booked(1)


async def test_the_same_mail_sent_again_on_purpose_is_sent_again(tmp_path, vendor):
    """However soon: as fast as a client can, on one connection and on others."""
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        for _ in range(30):
            assert (await at.ada.send(inbox)).status_code == 200
        assert len(vendor.sent) == 30
        await at.ada.assert_booked(30)


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_client_that_left_and_repeats_gets_the_message_it_had_sent(tmp_path, vendor, key):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(hangs(gate=gate))
        sending = go(at.ada.send(inbox, key=key))
        await gate.reached()
        await leave(sending)
        running = await at.ada.send(inbox, key=key)
        assert (running.status_code, running.headers["retry-after"]) == (409, "1")
        gate.open()
        await at.gateway.quiet()
        again = await at.ada.send(inbox, key=key)
        assert again.json() == vendor.sent[0].as_json()
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


async def leave(asking):
    """The client closes its connection."""
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_client_that_left_and_is_not_waited_for_has_sent_once(tmp_path, vendor, key):
    gate = Gate()
    async with house(tmp_path, vendor, env={"DRAIN_AFTER_CLIENT_LEFT_S": "0"}) as at:
        inbox = await at.ada.inbox("me")
        vendor.next(hangs(gate=gate))
        sending = go(at.ada.send(inbox, key=key))
        await gate.reached()
        await leave(sending)
        await at.ada.assert_booked(1)
        assert (await at.ada.send(inbox, key=key)).json() == vendor.sent[0].as_json()
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


async def test_a_client_that_leaves_while_a_message_is_looked_up_has_sent_nothing(tmp_path, vendor):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        message = vendor.receive(inbox, "ann@x.y", "Question")
        path = f"/v0/inboxes/{inbox}/messages/{quote(message.message_id)}/reply"
        vendor.next(hangs(gate=gate))
        asking = go(at.ada.http.post(path, json={"text": "A"}))
        await gate.reached()
        await leave(asking)
        gate.open()
        await at.ada.assert_booked(0)
        assert vendor.sent == []
        assert (await at.ada.http.post(path, json={"text": "A"})).status_code == 200
        await at.ada.assert_booked(1)


async def test_an_inbox_whose_maker_left_is_theirs_and_counts(tmp_path, vendor):
    gate = Gate()
    async with house(tmp_path, vendor, env={"AGENTMAIL_INBOXES_PER_USER": "1"}) as at:
        await at.ada.http.get("/v0/inboxes")
        vendor.next(hangs(gate=gate))
        making = go(at.ada.http.post("/v0/inboxes", json={"username": "me"}))
        await gate.reached()
        await leave(making)
        gate.open()
        await at.gateway.quiet()
        assert (await at.ada.http.post("/v0/inboxes", json={"username": "other"})).status_code == 403
        assert (await at.ada.http.get("/v0/inboxes/me@agentmail.to")).status_code == 200


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_of_two_that_race_one_is_sent(tmp_path, vendor, key):
    gate = Gate()
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("me")
        vendor.script = lambda _: hangs(gate=gate)
        sending = [go(at.ada.send(inbox, key=key)) for _ in range(10)]
        await at.gateway.until(lambda: sum(task.done() for task in sending) == 9)
        gate.open()
        answers = await asyncio.gather(*sending)
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
        assert len(vendor.sent) == 1
        await at.ada.assert_booked(1)


@pytest.mark.parametrize("key", [None, "my-key"])
async def test_a_server_that_is_killed_while_it_sends_has_sent_once(tmp_path, vendor, key):
    gate = Gate()
    env = variables(vendor)
    async with serving(tmp_path, upstream="http://127.0.0.1:1", env=env) as server:
        async with server.directory() as directory:
            await directory.add_user("ada", plan="test")
            token, _ = await directory.create_token("ada")
        headers = {"authorization": f"Bearer {token}"}
        headers |= {} if key is None else {"idempotency-key": key}

        async def post(path, body):
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                return await client.post(f"{server.url}/api/agentmail{path}", json=body, headers=headers)

        assert (await post("/v0/inboxes", {"username": "me"})).status_code == 200
        send = ("/v0/inboxes/me@agentmail.to/messages/send", {"to": ["a@b.c", "d@e.f"]})
        vendor.next(hangs(gate=gate))
        sending = go(post(*send))
        await gate.reached()
        server.signal(signal.SIGKILL)
        await server.exit_status()
        with pytest.raises(httpx.TransportError):
            await sending
        gate.open()
        await server.start()
        await server.until_nothing_is_held()
        again = await post(*send)
        assert again.json() == vendor.sent[0].as_json()
        assert len(vendor.sent) == 1
        await server.until_nothing_is_held()
        await server.assert_verified()
        spent = "SELECT SUM(spent) FROM accounts WHERE meter = ?1"
        assert server.rows(spent, "money") == [(2 * NANOUSD,)]
        assert server.rows(spent, "emails") == [(2,)]


async def test_two_users_with_the_same_names_and_keys_do_not_meet(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        mine = await at.ada.inbox("mine", client_id="main", display_name="Main")
        theirs = await at.bob.inbox("theirs", client_id="main", display_name="Main")
        assert mine != theirs
        bodies = {"to": "x@y.z", "subject": "Same"}
        drafts = [
            (await user.http.post(f"/v0/inboxes/{inbox}/drafts", json={**bodies, "client_id": "d"})).json()
            for user, inbox in ((at.ada, mine), (at.bob, theirs))
        ]
        assert drafts[0]["draft_id"] != drafts[1]["draft_id"]
        assert [draft["client_id"] for draft in drafts] == ["d", "d"]
        sent = [await at.ada.send(mine, key="k"), await at.bob.send(theirs, key="k")]
        assert [one.status_code for one in sent] == [200, 200]
        assert [one.inbox_id for one in vendor.sent] == [mine, theirs]
        keys = {one.idempotency_key for one in vendor.sent}
        assert len(keys) == 2
        assert not any(key == "k" for key in keys)
        for user in (at.ada, at.bob):
            await user.assert_booked(1)
