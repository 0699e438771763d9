"""What is another's does not exist: every operation of AgentMail's surface, with every id that stands in it.

The matrix is made from the declarations: an operation that is added is in it.
"""

import asyncio
import gzip
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

import orjson
import pytest
from websockets.asyncio.client import connect

from metering.objects import user_tag
from proxy.rewriting import tag_of
from routes.agentmail import SURFACE
from simulators.agentmail import AgentMailSimulator, answers, fails, replays
from simulators.agentmail_socket import Subscription
from simulators.script import WAIT_TIMEOUT_S
from tests.support.agentmail import MOUNT, house
from tests.support.raw_http import RawAnswer, raw_request

PIECE = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
WORDS = {"direction": "receive", "type": "allow"}
"""Pieces of a path that name nothing of anybody's."""
ENV = {"AGENTMAIL_INBOXES_PER_USER": "20"}
INVENTED = {
    "inbox_id": "nobody@agentmail.to",
    "pod_id": "00000000-0000-4000-8000-000000000000",
    "message_id": "<nothing@mail.agentmail.to>",
    "thread_id": "00000000-0000-4000-8000-000000000001",
    "draft_id": "00000000-0000-4000-8000-000000000002",
    "attachment_id": "00000000-0000-4000-8000-000000000003",
    "entry": "nobody@nowhere.example",
}


@pytest.fixture
async def vendor():
    async with AgentMailSimulator() as simulator:
        yield simulator


@dataclass
class Things:
    """What a user has, by the names that ids have in paths; `secrets`: all of it that nobody else may read."""

    ids: dict[str, str]
    draft_attachment_id: str
    secrets: set[str]

    def named(self, piece, path):
        if piece == "attachment_id" and "/drafts/" in path:
            return self.draft_attachment_id
        return self.ids[piece]


async def things_of(at, user, name):
    """An inbox with a message, a thread, a draft, files and a list of senders, all of them with a word of their own."""
    file = {"filename": f"{name}-file.txt", "content": "YWJj"}
    inbox = await user.inbox(name, client_id=f"{name}-client", display_name=f"{name}-display")
    message = at.vendor.receive(
        inbox, f"{name}-friend@x.y", f"{name}-subject", f"{name}-text", attachments=[file]
    )
    fields = {"to": f"{name}-addressee@x.y", "subject": f"{name}-draft", "attachments": [file]}
    answer = await user.http.post(f"/v0/inboxes/{inbox}/drafts", json={**fields, "client_id": f"{name}-dc"})
    draft = answer.json()
    entry = f"{name}-entry@x.y"
    kept = await user.http.post(f"/v0/inboxes/{inbox}/lists/receive/allow", json={"entry": entry})
    assert (answer.status_code, kept.status_code) == (200, 200)
    pod = at.vendor.organization.inboxes[inbox].pod_id
    ids = {
        "inbox_id": inbox,
        "pod_id": pod,
        "message_id": message.message_id,
        "thread_id": message.thread_id,
        "draft_id": draft["draft_id"],
        "attachment_id": message.content.attachments[0].attachment_id,
        "entry": entry,
    }
    draft_attachment_id = draft["attachments"][0]["attachment_id"]
    assert INVENTED.keys() == ids.keys()
    words = {f"{name}-{word}" for word in ("file", "client", "display", "friend", "subject", "text", "draft")}
    words |= {f"{name}-addressee", f"{name}-dc", user_tag(user.user_id), draft_attachment_id, *ids.values()}
    return Things(ids, draft_attachment_id, words)


def at_vendor(at, things):
    """All that the vendor keeps of a user's."""
    organization = at.vendor.organization
    inbox = organization.inboxes.get(things.ids["inbox_id"])
    kept = () if inbox is None else (*inbox.messages.values(), *inbox.drafts.values())
    sent = [one for one in at.vendor.sent if one.inbox_id == things.ids["inbox_id"]]
    pods = sorted(pod.pod_id for pod in organization.pods.values())
    return orjson.dumps(
        [inbox and inbox.as_json(), [one.as_json() for one in kept], len(sent), pods], default=str
    )


def pieces_of(operation):
    return [piece for piece, _ in PIECE.findall(operation.path)]


def filled(operation, values):
    """The operation's path with these ids."""
    return with_words(PIECE.sub(lambda piece: quote(values[piece[1]], safe="@"), operation.path))


def with_words(path):
    """A search is for something."""
    return f"{path}?q=x" if path.endswith("/search") else path


async def ask(at, user, operation, path, body=None):
    headers = [(b"authorization", b"Bearer " + user.token.encode())]
    content = b""
    if operation.method in {"POST", "PATCH"}:
        headers.append((b"content-type", b"application/json"))
        content = operation.example.body if body is None else orjson.dumps(body)
    return await raw_request(at.gateway.url, operation.method, f"{MOUNT}{path}".encode(), headers, content)


def assert_tells_nothing(at, answer, others, mine):
    """Nothing of somebody else's and nothing of the account's, head and body."""
    own = {mine.ids["pod_id"], mine.ids["inbox_id"]}
    made = {inbox.inbox_id for inbox in at.vendor.organization.inboxes.values() if inbox.pod_id in own}
    words = (others.secrets | at.vendor.account_words()) - own - made
    text = answer.wire.decode()
    assert [word for word in words if word in text or quote(word, safe="") in text] == []


def ids_in(operation):
    return [piece for piece in pieces_of(operation) if piece not in WORDS]


def as_case(operation):
    return operation.name


REQUESTS = [one for one in SURFACE.operations if one.socket is None]
"""The websocket has a matrix of its own, below."""
each_operation = pytest.mark.parametrize("operation", REQUESTS, ids=as_case)


def test_the_matrix_knows_every_id_that_a_path_may_have():
    known = INVENTED.keys() | WORDS.keys()
    assert {piece for operation in REQUESTS for piece in pieces_of(operation)} <= known


SPELLINGS = {
    "as it is": lambda value: quote(value, safe="@"),
    "encoded": lambda value: quote(value, safe=""),
    "all encoded": lambda value: "".join(f"%{byte:02X}" for byte in value.encode()),
    "upper case": lambda value: quote(value.upper(), safe="@"),
    "decoded": lambda value: quote(value, safe="@<>+="),
}


@pytest.mark.parametrize("operation", [one for one in REQUESTS if ids_in(one)], ids=as_case)
async def test_what_is_anothers_is_as_what_does_not_exist(tmp_path, vendor, operation):
    """Each id alone among one's own, and all of them; however they are written."""
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        own = {piece: bob.named(piece, operation.path) for piece in ids_in(operation)} | WORDS
        before, sent = (at_vendor(at, ada), at_vendor(at, bob)), len(vendor.sent)
        for taken in [[piece] for piece in ids_in(operation)] + [ids_in(operation)]:
            nothing = filled(operation, own | {piece: INVENTED[piece] for piece in taken})
            expected = await ask(at, at.bob, operation, nothing)
            assert expected.status == 404
            for spell in SPELLINGS.values():
                stolen = own | {piece: ada.named(piece, operation.path) for piece in taken}
                written = {piece: quote(value, safe="@") for piece, value in stolen.items()}
                written |= {piece: spell(stolen[piece]) for piece in taken}
                path = with_words(PIECE.sub(lambda piece: written[piece[1]], operation.path))  # noqa: B023 - at once
                answer = await ask(at, at.bob, operation, path)
                assert (answer.status, answer.body) == (expected.status, expected.body)
                assert_tells_nothing(at, answer, ada, bob)
        assert (at_vendor(at, ada), at_vendor(at, bob), len(vendor.sent)) == (*before, sent)
        await at.bob.assert_booked(0)
        hers = {piece: ada.named(piece, operation.path) for piece in ids_in(operation)} | WORDS
        control = await ask(at, at.ada, operation, filled(operation, hers))
        assert 200 <= control.status < 300, "it would have worked for her"
        assert_tells_nothing(at, control, bob, ada)
        assert user_tag("ada").encode() not in control.wire


@each_operation
async def test_no_parameter_and_no_field_reaches_anothers(tmp_path, vendor, operation):
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        own = {piece: bob.named(piece, operation.path) for piece in ids_in(operation)} | WORDS
        before = at_vendor(at, ada)
        stolen = {**ada.ids, "in_reply_to": ada.ids["message_id"], "forward_of": ada.ids["message_id"]}
        stolen |= {"client_id": "ada-client", "organization_id": "org_x", "name": user_tag("ada")}
        example = orjson.loads(operation.example.body or b"{}")
        for name, value in stolen.items():
            several = orjson.dumps([value]).decode()
            query = "&".join(
                f"{one}={quote(text, safe='')}"
                for one, text in ((name, value), (f"{name}s", several), (f"{name}s", value), ("q", value))
            )
            fields = {**example, name: value, f"{name}s": [value]}
            last = "username" in example
            if last:
                fields |= {"username": f"bob{len(vendor.requests)}"}
            if operation.method in {"GET", "PATCH"}:
                path = f"{filled(operation, own).partition('?')[0]}?{query}"
                answer = await ask(at, at.bob, operation, path)
                assert_tells_nothing(at, answer, _but(ada, value), bob)
            if operation.method in {"POST", "PATCH"}:
                answer = await ask(at, at.bob, operation, filled(operation, own), fields)
                assert_tells_nothing(at, answer, _but(ada, value), bob)
            assert at_vendor(at, ada) == before


def _but(things, value):
    """Without what its reader has said himself: a draft shows its own client_id."""
    return Things(things.ids, things.draft_attachment_id, {one for one in things.secrets if one not in value})


@pytest.mark.parametrize(
    "operation",
    [one for one in REQUESTS if one.method == "GET" and b'"count"' in one.example.answer],
    ids=as_case,
)
async def test_lists_count_ones_own_and_go_on_with_ones_own(tmp_path, vendor, operation):
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        for number in range(3):
            for things, user in ((ada, at.ada), (bob, at.bob)):
                inbox, name = things.ids["inbox_id"], things.ids["inbox_id"].partition("@")[0]
                vendor.receive(inbox, f"{name}-friend@x.y", f"{name}-subject bird {number}")
                made = await user.inbox(f"{name}-bird-{number}")
                things.secrets.add(made)
                labels = {"add_labels": [f"{name}-label{number}"]}
                message = quote(things.ids["message_id"])
                await user.http.patch(f"/v0/inboxes/{inbox}/messages/{message}", json=labels)
                await user.http.post(f"/v0/inboxes/{inbox}/drafts", json={"subject": "bird"})
                entry = {"entry": f"{name}-{number}@x.y"}
                await user.http.post(f"/v0/inboxes/{inbox}/lists/receive/allow", json=entry)
        (plural,) = orjson.loads(operation.example.answer).keys() - {"count", "limit"}

        async def walked(user, things, first=""):
            own = {piece: things.named(piece, operation.path) for piece in ids_in(operation)} | WORDS
            found, token = [], first
            while token is not None:
                page = f"&page_token={quote(token)}" if token else ""
                path = f"{filled(operation, own).partition('?')[0]}?limit=2&q=bird{page}"
                answer = await ask(at, user, operation, path)
                assert answer.status == 200
                other = ada if things is bob else bob
                assert_tells_nothing(at, answer, other, things)
                shown = answer.json()
                assert shown["count"] == len(shown[plural]) <= 2
                found += [orjson.dumps(one) for one in shown[plural]]
                token = shown.get("next_page_token")
                tokens.append(token)
            return found

        tokens = []
        hers = await walked(at.ada, ada)
        assert len(hers) == len(set(hers)) >= 3
        for token in [
            one for one in tokens if one
        ]:  # of somebody else's list: no more than a place in one's own
            assert set(await walked(at.bob, bob, token)).isdisjoint(hers)


# --- errors ---------------------------------------------------------------------------------------------


ERRORS = [
    *((status, None) for status in (400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 503)),
    (403, "message_rejected"),
    (403, "resource_taken"),
    (403, "limit_exceeded"),
    (403, "domain_not_verified"),
    (403, "cannot_delete"),
    (400, "bad_request"),
]


@pytest.mark.parametrize(("status", "code"), ERRORS)
async def test_no_error_names_the_account_or_anybody(tmp_path, vendor, status, code):
    async with house(tmp_path, vendor) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        words = f"{ada.ids['inbox_id']} of pod {ada.ids['pod_id']}, {user_tag('bob')}-first, has {{}}"
        told = [{"path": ["to"], "message": words}]
        for operation in ("POST /v0/inboxes", "POST /v0/inboxes/{inbox_id}/messages/send"):
            (asked,) = (one for one in REQUESTS if one.name == operation)
            own = {piece: bob.named(piece, asked.path) for piece in ids_in(asked)}
            for message in (None, words):
                vendor.next(fails(status, code, message=message, errors=told))
                answer = await ask(at, at.bob, asked, filled(asked, own), {"to": "a@b.c", "username": "x"})
                assert answer.status >= 400
                assert answer.json().keys() >= {"name", "code", "message"}
                assert "fix" not in answer.json()
                assert_tells_nothing(at, answer, ada, bob)
                assert user_tag("bob").encode() not in answer.wire


async def test_what_the_vendor_refuses_itself_is_told_without_its_reasons(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        inbox = bob.ids["inbox_id"]
        asked = (
            ("/v0/inboxes", {"username": "x", "domain": "elsewhere.example"}, 403),
            ("/v0/inboxes", {"username": "x", "client_id": "a@b"}, 400),
            (f"/v0/inboxes/{inbox}/messages/send", {"to": "blocked@x.y"}, 403),
            (f"/v0/inboxes/{inbox}/messages/send", {"to": "nonsense"}, 400),
            (f"/v0/inboxes/{inbox}/messages/send", {"to": "a@b.c", "subject": "a\nb"}, 400),
        )
        alarms = "automna_upstream_account_alarms_total"
        for path, body, status in asked:
            answer = await at.bob.http.post(path, json=body)
            assert answer.status_code == status
            assert not [word for word in vendor.account_words() | ada.secrets if word in answer.text]
        assert at.gateway.metric(alarms, surface="agentmail", status="403") == 0
        subject = await at.bob.http.post(asked[-1][0], json=asked[-1][1])
        assert "Line breaks" in subject.text, "what is about the request itself is said"


# --- ids ------------------------------------------------------------------------------------------------


async def test_an_address_never_changes_hands(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("Wren")
        assert (await at.ada.http.delete(f"/v0/inboxes/{inbox}")).status_code == 202
        pod = (await at.bob.http.post("/v0/inboxes", json={"username": "lynx"})).json()["pod_id"]
        before = set(vendor.organization.inboxes)
        for path in ("/v0/inboxes", f"/v0/pods/{pod}/inboxes"):
            for fields in (
                {"username": "wren"},
                {"username": "WREN", "domain": "AgentMail.to"},
                {"username": "wren", "domain": None},
                {"username": " wren"},
                {"username": "wren@agentmail.to"},
            ):
                taken = await at.bob.http.post(path, json=fields)
                assert taken.status_code == 403
                assert taken.json()["message"] == "This name is taken."
        assert set(vendor.organization.inboxes) == before
        assert (await at.bob.http.get(f"/v0/inboxes/{inbox}")).status_code == 404
        assert await at.ada.inbox("wren") == "wren@agentmail.to"
        assert (await at.ada.http.get("/v0/inboxes/wren@agentmail.to")).status_code == 200
        assert (await at.bob.http.get("/v0/inboxes")).json()["count"] == 1


@pytest.mark.parametrize("path", ["/v0/inboxes", "/v0/inboxes/search?q=a"])
async def test_a_vendor_that_shows_anothers_inbox_is_not_believed(tmp_path, vendor, path):
    async with house(tmp_path, vendor) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        hers = vendor.organization.inboxes[ada.ids["inbox_id"]].as_json()
        his = vendor.organization.inboxes[bob.ids["inbox_id"]].as_json()
        vendor.next(
            answers({"count": 2, "limit": 2, "inboxes": [his, {**hers, "inbox_id": "ADA@agentmail.to"}]})
        )
        answer = await at.bob.http.get(path)
        assert answer.status_code >= 500
        assert "ada" not in answer.text.lower()
        vendor.next(answers(hers))
        made = await at.bob.http.post("/v0/inboxes", json={})
        assert made.status_code >= 500
        assert "ada" not in made.text.lower()
        assert (await at.bob.http.get(f"/v0/inboxes/{ada.ids['inbox_id']}")).status_code == 404
        assert (await at.ada.http.get(f"/v0/inboxes/{ada.ids['inbox_id']}")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"inboxes":null}',
        b'{"inboxes":[null,1,{"inbox_id":2}]}',
        b"\xff",
        b"[" * 2_000,
    ],
)
async def test_an_answer_of_another_shape_breaks_nothing(tmp_path, vendor, body):
    async with house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob")
        for path in ("/v0/inboxes", f"/v0/inboxes/{inbox}/events", f"/v0/inboxes/{inbox}/lists/send/block"):
            vendor.next(answers(body))
            assert (await at.bob.http.get(path)).status_code in {200, 502}
        vendor.next(answers(body))
        path = f"/v0/inboxes/{inbox}/messages/%3Cx@y%3E/reply"
        assert (await at.bob.http.post(path, json={})).status_code in {400, 502}
        assert vendor.sent == []
        await at.bob.assert_booked(0)


async def test_a_packed_answer_is_read_and_a_huge_one_does_not_pass(tmp_path):
    async with AgentMailSimulator(gzip=True) as vendor, house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob", client_id="mine")
        shown = await at.bob.http.get("/v0/inboxes", headers={"accept-encoding": "gzip"})
        assert shown.json()["inboxes"][0]["client_id"] == "mine"
        packed = gzip.compress(shown.content.replace(b"mine", user_tag("bob").encode() + b"-mine"))
        vendor.next(replays(packed, "application/json", content_encoding="gzip"))
        read = await at.bob.http.get(f"/v0/inboxes/{inbox}")
        assert read.json()["inboxes"][0]["client_id"] == "mine"
        bomb = gzip.compress(b'{"inboxes":"' + b"a" * (40 << 20) + b'"}')
        vendor.next(replays(bomb, "application/json", content_encoding="gzip"))
        assert (await at.bob.http.get("/v0/inboxes")).status_code == 502


# --- names within the account -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 1.5, True, ["first"], {"a": "first"}, "a@b"])
async def test_a_client_id_that_is_no_name_is_refused(tmp_path, vendor, value):
    async with house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob")
        for path in ("/v0/inboxes", f"/v0/inboxes/{inbox}/drafts"):
            answer = await at.bob.http.post(path, json={"username": "x", "client_id": value})
            assert answer.status_code == 400
        assert len(vendor.organization.inboxes) == 1


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"client_id":"first","client_id":null}', 400),
        ('{"client_id":null,"client_id":"first"}', 400),
        ('{"client_id":"first","client\\u005fid":"other"}', 400),
        ('{"client\\u005fid":"first"}', 200),
        ('{"client_id":"TAG-first"}', 200),
        ('{"client_id":null}', 200),
        ('{"client_id":"first","metadata":DEEP}', 400),
    ],
)
async def test_no_name_goes_up_but_with_its_users_prefix(tmp_path, vendor, text, status):
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("ada", client_id="first")
        text = text.replace("TAG", user_tag("ada")).replace("DEEP", '{"a":' * 400 + "1" + "}" * 400)
        headers = {"content-type": "application/json"}
        answer = await at.bob.http.post("/v0/inboxes", content=text, headers=headers)
        assert answer.status_code == status
        assert inbox not in answer.text
        assert user_tag("bob") not in answer.text
        for request in [one for one in vendor.requests if one.path.endswith("/inboxes") and one.body][1:]:
            assert request.body.count(b"client_id") == 1
            name = request.json()["client_id"]
            if "null" in text:  # as if there were none
                assert name == tag_of(answer.headers["x-automna-request-id"])
            else:
                assert name.startswith(f"{user_tag('bob')}-")
        assert "automna-" not in answer.text


async def test_a_prefix_that_a_user_writes_means_nothing(tmp_path, vendor):
    """Whoever works out another's prefix reaches nothing by it."""
    async with house(tmp_path, vendor) as at:
        inbox = await at.ada.inbox("ada", client_id="first")
        smuggled = f"{user_tag('ada')}-first"
        for body in ({"client_id": smuggled}, {"client_id": f"{user_tag('bob')}-{smuggled}"}):
            answer = await at.bob.http.post("/v0/inboxes", json=body)
            assert answer.status_code == 200
            assert answer.json()["inbox_id"] != inbox


# --- keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b"a", b"a"],
        [b"a", b"b"],
        [b"a b"],
        [b"a/b"],
        [b"a,b"],
        [b"\xc3\xa4"],
        [b"a" * 257],
        [b"%61"],
    ],
)
async def test_a_key_that_is_none_is_refused_before_anything_is_sent(tmp_path, vendor, values):
    async with house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob")
        headers = [
            (b"authorization", b"Bearer " + at.bob.token.encode()),
            (b"content-type", b"application/json"),
        ]
        target = f"{MOUNT}/v0/inboxes/{inbox}/messages/send".encode()
        for name in (b"idempotency-key", b"Idempotency-KEY"):
            more = [*headers, *((name, value) for value in values)]
            answer = await raw_request(at.gateway.url, "POST", target, more, b'{"to":"a@b.c"}')
            assert answer.status == 400
        assert vendor.sent == []


async def test_a_key_is_nobody_elses_whatever_it_looks_like(tmp_path, vendor):
    async with house(tmp_path, vendor) as at:
        hers, his = await at.ada.inbox("ada"), await at.bob.inbox("bob")
        await at.ada.send(hers, key="k")
        await at.ada.send(hers)
        for key in ["k", *(one.idempotency_key for one in vendor.sent)]:
            assert (await at.bob.send(his, key=key)).json() == vendor.sent[-1].as_json()
        for name in ("x-idempotency-key", "idempotency_key"):
            headers = {name: vendor.sent[0].idempotency_key}
            path = f"/v0/inboxes/{his}/messages/send"
            answer = await at.bob.http.post(path, json={"to": "a@b.c", "subject": name}, headers=headers)
            assert answer.json() == vendor.sent[-1].as_json()
        assert [one.inbox_id for one in vendor.sent] == [hers] * 2 + [his] * 5
        assert len({one.idempotency_key for one in vendor.sent}) == 7
        await at.ada.assert_booked(2)
        await at.bob.assert_booked(5)


# --- paths ----------------------------------------------------------------------------------------------

PATHS = (
    "/v0/inboxes/{his}/../{hers}",
    "/v0/inboxes/{his}/%2e%2e/{hers}",
    "/v0/inboxes/{his}%2F..%2F{hers}",
    "/v0/inboxes/{his}%2f{hers}",
    "/v0/inboxes/{his}/./messages",
    "/v0/inboxes/{his}//messages/{message}",
    "/v0/inboxes//{hers}",
    "/v0/inboxes/{hers}%00",
    "/v0/inboxes/{hers}%20",
    "/v0/inboxes/%20{hers}",
    "/v0/inboxes/{hers}.",
    "/v0/inboxes/{his}%5c..%5c{hers}",
    "/v0/inboxes/{his}/messages/../../{hers}/messages/{message}",
    "/v0/inboxes/{his}/messages/x/../../../{hers}/messages/{message}",
    "/v0/inboxes/{his}/messages/x%2F..%2F..%2F..%2F{hers}%2Fmessages%2F{message}",
    "/v0/inboxes/{his}/messages/x%2F%2E%2E%2F%2E%2E%2F%2E%2E%2F{hers}/messages/{message}",
    "/v0/inboxes/{his}/messages/%2e%2e%2f%2e%2e%2f{hers}",
    "/v0/inboxes/{his}/messages/..%5c..%5c{hers}",
    "/v0/inboxes/{his}/messages/..;/..;/{hers}/messages/{message}",
    "/v0/inboxes/{his}/messages/x%2F..%3Bx=1%2F..%3B%2F..%3B%2F{hers}%2Fmessages%2F{message}",
    "/v0/threads/..;x",
    "/v0/inboxes/{his}/messages/%00/../{message}",
    "/v0/inboxes/{his}/messages/x/..%2freply/attachments/y",
    "/v0/inboxes/{his}/drafts/..%2Fmessages",
    "/v0/threads/../inboxes/{hers}",
    "/v0/threads/..%2Finboxes%2F{hers}",
    "/v0/threads/%2e%2e",
    "/v0/threads/{pod}",
    "/v0/drafts/{{pod}}",
    "/v0/drafts/%7Bpod%7D",
    "/v0/threads/%7Bthread_id%7D",
    "/v0/pods/{pod}/inboxes",
    "/v0/pods/{own}/../{pod}/inboxes",
    "/v0/pods/{own}%2F..%2F{pod}/inboxes",
    "/v0/pods/{own}/inboxes/{hers}",
    "/v0/pods/{own}/threads/{thread}",
    "/v0/pods",
    "/v0/pods/{own}",
    "/v0/pods/",
    "/v0/organizations",
    "/v0/api-keys",
    "/v0/domains",
    "/v0/webhooks",
    "/v0/inboxes/{his}/webhooks",
    "/v0/inboxes/{his}/api-keys",
    "/v0/pods/{own}/api-keys",
    "/v0/auth/me",
    "/v0/metrics/usage",
    "/v0/lists/send/block",
    "/v0/inboxes/{his}/lists/reply/allow",
    "/v0/inboxes/{his}/lists/send/block/..%2F..",
    "/v0",
    "",
)


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_no_path_leads_out_of_ones_own(tmp_path, vendor, method):
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        names = {
            "hers": ada.ids["inbox_id"],
            "his": bob.ids["inbox_id"],
            "pod": ada.ids["pod_id"],
            "own": bob.ids["pod_id"],
            "message": quote(ada.ids["message_id"]),
            "thread": ada.ids["thread_id"],
        }
        headers = [
            (b"authorization", b"Bearer " + at.bob.token.encode()),
            (b"content-type", b"application/json"),
        ]
        before, seen = at_vendor(at, ada), len(vendor.requests)
        for path in PATHS:
            target = (MOUNT + path.format(**names)).encode()
            body = b"" if method in {"GET", "DELETE"} else b'{"name":"x","to":"a@b.c"}'
            answer = await raw_request(at.gateway.url, method, target, headers, body)
            is_socket = (method, path) == ("GET", "/v0")  # which asks for another protocol
            assert answer.status in ({426} if is_socket else {400, 404}), path
            own = at.vendor.account_words() & {bob.ids["pod_id"], bob.ids["inbox_id"]}
            said = answer.body.replace(target.removeprefix(MOUNT.encode()), b"")  # what he has said himself
            assert not [word for word in vendor.account_words() - own if word.encode() in said], path
        for request in vendor.requests[seen:]:
            assert ".." not in request.target
            assert (
                ada.ids["inbox_id"] not in request.target or f"/pods/{bob.ids['pod_id']}/" in request.target
            )
        assert at_vendor(at, ada) == before
        assert vendor.sent == []


@pytest.mark.parametrize("length", [513, 9_000])
async def test_a_very_long_id_is_no_id(tmp_path, vendor, length):
    async with house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob")
        seen = len(vendor.requests)
        long = await at.bob.http.get(f"/v0/inboxes/{'a' * length}@agentmail.to")
        assert long.status_code in {400, 404, 414, 431}
        assert len(vendor.requests) == seen
        answer = await at.bob.http.post(f"/v0/inboxes/{inbox}/messages/{'a' * length}/reply", json={})
        assert answer.status_code in {400, 404, 414, 431}


@pytest.mark.parametrize("status", [400, 404, 414, 422])
async def test_what_the_vendor_takes_for_no_id_is_not_found(tmp_path, vendor, status):
    async with house(tmp_path, vendor) as at:
        inbox = await at.bob.inbox("bob")
        vendor.next(fails(status))
        answer = await at.bob.http.post(f"/v0/inboxes/{inbox}/messages/x/reply", json={})
        assert (answer.status_code, answer.json()["message"]) == (404, "Not found.")
        assert vendor.sent == []
        await at.bob.assert_booked(0)


# --- limits ---------------------------------------------------------------------------------------------


async def test_who_is_too_fast_looks_nothing_up(tmp_path, vendor):
    """What a request must look up goes to the account that all share."""
    async with house(tmp_path, vendor, requests_per_minute=5) as at:
        inbox = await at.bob.inbox("bob")
        message = quote(vendor.receive(inbox, "a@b.c", "x").message_id)
        path = f"/v0/inboxes/{inbox}/messages/{message}/reply"
        answers_ = [await at.bob.http.post(path, json={"text": str(number)}) for number in range(20)]
        assert [answer.status_code for answer in answers_] == [200] * 4 + [429] * 16
        assert len([one for one in vendor.requests if one.method == "GET"]) == 4


# --- the websocket ----------------------------------------------------------------------------------------

(SOCKET,) = (one for one in SURFACE.operations if one.socket is not None)
WRITTEN = [
    str,
    str.upper,
    str.title,
    lambda value: f" {value}",
    lambda value: f"{value}\u200b",
    lambda value: f"<{value}>",
]
"""Spellings of an id in a message, where nothing is decoded but JSON."""


@asynccontextmanager
async def listening(at, user):
    url = at.gateway.url.replace("http", "ws") + f"{MOUNT}{SOCKET.path}"
    async with connect(url, additional_headers={"x-api-key": user.token}, proxy=None) as socket:
        yield socket


async def said(socket, **message):
    """The answer to a subscription, as it came."""
    await socket.send(orjson.dumps({"type": "subscribe", **message}).decode())
    async with asyncio.timeout(WAIT_TIMEOUT_S):
        return await socket.recv()


@pytest.mark.parametrize("place", SOCKET.socket.ids, ids=lambda place: place.kind)
async def test_nobody_subscribes_to_what_is_anothers(tmp_path, vendor, place):
    """Alone, beside one's own, and in every spelling: as what does not exist, and nothing of it goes up."""
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        own = [bob.ids[place.one]]
        async with listening(at, at.bob) as socket:
            assert "error" not in await said(socket, **{place.many: own})
            nothing = await said(socket, **{place.many: [INVENTED[place.one]]})
            for spell in WRITTEN:
                stolen = spell(ada.ids[place.one])
                for ids in ([stolen], [*own, stolen], [stolen, *own]):
                    assert await said(socket, **{place.many: ids}) == nothing
            assert len(vendor.sockets[-1].heard) == 1


async def test_whatever_happens_to_one_user_another_hears_nothing_of_it(tmp_path, vendor):
    async with house(tmp_path, vendor, env=ENV) as at:
        ada, bob = await things_of(at, at.ada, "ada"), await things_of(at, at.bob, "bob")
        async with listening(at, at.bob) as his, listening(at, at.ada) as hers:
            shown = {his: [await said(his)], hers: [await said(hers)]}
            vendor.sockets[-2].subscriptions.append(
                Subscription()
            )  # though the vendor told him of everything
            vendor.sockets[-1].subscriptions.append(Subscription())
            for things, user in ((ada, at.ada), (bob, at.bob)):
                inbox = things.ids["inbox_id"]
                name = inbox.partition("@")[0]
                vendor.receive(inbox, f"{name}-friend@x.y", f"{name}-subject", label="spam")
                sent = await user.send(inbox, f"{name}-addressee@x.y", f"{name}-subject")
                assert sent.status_code == 200
                for happens in (vendor.open, vendor.bounce, vendor.complain, vendor.reject):
                    happens(vendor.sent[-1])
            vendor.events.happen(
                "domain.verified", inbox_id="", pod_id="", payload={"domain": {"domain": "x.y"}}
            )
            names = {his: "bob", hers: "ada"}
            for socket, texts in shown.items():
                while not texts[-1].count('"reject"'):
                    async with asyncio.timeout(WAIT_TIMEOUT_S):
                        texts.append(await socket.recv())
                assert sum(f"{names[socket]}@" in text for text in texts) >= 6, "each hears of their own"
            for socket, others, mine in ((his, ada, bob), (hers, bob, ada)):
                answer = RawAnswer(101, (), b"", "\n".join(shown[socket]).encode())
                assert_tells_nothing(at, answer, others, mine)
