"""AgentMail: inboxes, messages, threads and drafts, each user in a pod of their own.

All users share one account at the vendor. A user's pod is made when they first need one; what the account lists goes to the
pod's own lists, inboxes belong to the user who made them, and what is in an inbox belongs to whom the inbox does. Names
within the account (`client_id`) get the user's prefix. What would reach the account (keys, domains, webhooks, other pods) is
not declared, so it does not exist. Paths and bodies: agentmail 2.0.18 (Python).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from metering.rate_state import Standing
from metering.usage import MESSAGES, NOTHING, RECIPIENTS, Usage, UsageLine
from proxy.meters import Free
from proxy.rewriting import MARK
from proxy.surface import (
    BEARER,
    Chooses,
    Ending,
    Example,
    HandsOut,
    HeaderKey,
    Home,
    LookUp,
    Meter,
    Names,
    Operation,
    Option,
    Scheduled,
    Surface,
    Swept,
    Tag,
    Upstream,
)
from routes import agentmail_drafts as drafts
from routes.agentmail_drafts import SCHEDULED_DAYS_ENV, DraftMeter
from routes.agentmail_errors import AgentMailDialect
from routes.agentmail_meter import PRODUCT, SendMeter, no_model, of_draft, of_reply, of_reply_all, of_request
from routes.agentmail_socket import ANY_ORGANIZATION, INBOX, ORGANIZATION_ID, POD, SOCKET

INBOXES_ENV = "AGENTMAIL_INBOXES_PER_USER"
DRAFT = "draft"
"""A kind of object that the vendor keeps."""
DOMAIN = "agentmail.to"
"""Of an inbox that is asked for without one."""

_NOT_FOUND = "Not found."
_IN_PATH = Names(INBOX, _NOT_FOUND, path_param="inbox_id", is_caseless=True)
_POD = Names(POD, _NOT_FOUND, path_param="pod_id")
_MADE = (HandsOut(INBOX, "inbox_id", is_caseless=True),)
_LISTED = (HandsOut(INBOX, "inboxes.inbox_id", is_caseless=True),)
_CLIENT_ID = ("client_id",)
TAG = Tag("client_id", is_optional=True, makes_once=True)
"""The vendor makes one inbox for each value of it, in all pods together."""
_ONE_EMAIL = Usage((UsageLine(PRODUCT, {RECIPIENTS: 1, MESSAGES: 1}),))

_INBOX_JSON = (
    b'{"pod_id":"pod1","inbox_id":"wren@agentmail.to","email":"wren@agentmail.to","display_name":"Wren",'
    b'"updated_at":"2026-11-20T12:00:00Z","created_at":"2026-11-20T12:00:00Z"}'
)
_INBOXES_JSON = b'{"count":1,"limit":10,"inboxes":[' + _INBOX_JSON + b"]}"
MESSAGE_JSON = (
    b'{"inbox_id":"wren@agentmail.to","thread_id":"thd1","message_id":"<m1@agentmail.to>","labels":["received"],'
    b'"timestamp":"2026-11-20T12:00:00Z","from":"Ann <ann@example.com>","to":["wren@agentmail.to"],'
    b'"subject":"Hello","text":"Hello.","size":120,"updated_at":"2026-11-20T12:00:00Z",'
    b'"created_at":"2026-11-20T12:00:00Z"}'
)
MESSAGES_JSON = b'{"count":1,"limit":10,"messages":[' + MESSAGE_JSON + b"]}"
_THREAD_JSON = (
    b'{"inbox_id":"wren@agentmail.to","thread_id":"thd1","labels":["received"],"timestamp":"2026-11-20T12:00:00Z",'
    b'"senders":["ann@example.com"],"recipients":["wren@agentmail.to"],"message_count":1,"size":120,'
    b'"last_message_id":"<m1@agentmail.to>"}'
)
_THREADS_JSON = b'{"count":1,"limit":10,"threads":[' + _THREAD_JSON + b"]}"
_DRAFT_JSON = (
    b'{"inbox_id":"wren@agentmail.to","draft_id":"drf1","labels":["draft"],"to":["ann@example.com"],'
    b'"subject":"Hello","text":"Hello.","updated_at":"2026-11-20T12:00:00Z","created_at":"2026-11-20T12:00:00Z"}'
)
_DRAFTS_JSON = b'{"count":1,"limit":10,"drafts":[' + _DRAFT_JSON + b"]}"
_ATTACHMENT_JSON = (
    b'{"attachment_id":"att1","filename":"a.txt","size":3,"content_type":"text/plain",'
    b'"download_url":"https://files.example/att1","expires_at":"2026-11-20T13:00:00Z"}'
)
_SENT_JSON = b'{"message_id":"<m2@agentmail.to>","thread_id":"thd1"}'
_LABELS_JSON = b'{"message_id":"<m1@agentmail.to>","labels":["received","kept"]}'
_ENTRY_JSON = b'{"entry":"ann@example.com","direction":"receive","type":"allow"}'
_LIST_JSON = b'{"count":1,"limit":10,"entries":[' + _ENTRY_JSON + b"]}"
_SEND_JSON = b'{"to":"ann@example.com","subject":"Hello","text":"Hello."}'
_TEXT_JSON = b'{"text":"Hello."}'
_LABEL_JSON = b'{"add_labels":["kept"]}'

_INBOXES, _ONE = "/v0/inboxes", "/v0/inboxes/{inbox_id}"
_MESSAGE = f"{_ONE}/messages/{{message_id:*}}"
_DRAFT = f"{_ONE}/drafts/{{draft_id}}"
_LIST = f"{_ONE}/lists/{{direction:receive|send}}/{{type:allow|block}}"
_FILLED = {
    "{inbox_id}": "wren@agentmail.to",
    "{message_id:*}": "%3Cm1@agentmail.to%3E",
    "{thread_id}": "thd1",
    "{draft_id}": "drf1",
    "{attachment_id}": "att1",
    "{pod_id}": "pod1",
    "{direction:receive|send}": "receive",
    "{type:allow|block}": "allow",
    "{entry}": "ann@example.com",
}
"""The pieces of a path as an example has them."""


def _example(path: str, body: bytes, answer: bytes, *, usage: Usage = NOTHING) -> Example:
    for piece, value in _FILLED.items():
        path = path.replace(piece, value)
    return Example(path, body=body, answer=answer, usage=usage)


def _without_account(body: bytes, _: Standing) -> bytes:
    """The account's own id stands in what AgentMail says of lists and events: another word stands for it."""
    answer = orjson.loads(body)
    if not isinstance(answer, dict):
        return body
    for found in (answer, answer.get("entries"), answer.get("events")):
        for one in found if isinstance(found, list) else (found,):
            if isinstance(one, dict) and ORGANIZATION_ID in one:
                one[ORGANIZATION_ID] = ANY_ORGANIZATION
    return orjson.dumps(answer)


def _free(
    method: str,
    path: str,
    answer: bytes,
    body: bytes = b"",
    *,
    namespaced: tuple[str, ...] = (),
    renders: Callable[[bytes, Standing], bytes] | None = None,
    touches: tuple[str, str] | None = None,
) -> Operation:
    """Within an inbox of the user's."""
    return Operation(
        method,
        path,
        meter=Free(no_model),
        names=(_IN_PATH,),
        namespaced=namespaced,
        renders=renders,
        touches=touches,
        may_lack_body=not body,
        example=_example(path, body, answer),
    )


def _in_pod(
    method: str,
    path: str,
    answer: bytes,
    *,
    hands_out: tuple[HandsOut, ...] = (),
    namespaced: tuple[str, ...] = (),
) -> Operation:
    """What is asked of the account is asked of the user's pod."""
    return Operation(
        method,
        path,
        meter=Free(),
        upstream_path=path.replace("/v0/", "/v0/pods/{pod}/", 1),
        homes=(POD,),
        hands_out=hands_out,
        namespaced=namespaced,
        example=_example(path, b"", answer),
    )


def _of_pod(
    path: str, answer: bytes, *, names: tuple[Names, ...] = (), hands_out: tuple[HandsOut, ...] = ()
) -> Operation:
    """Below the user's own pod, by its id."""
    return Operation(
        "GET",
        f"/v0/pods/{{pod_id}}/{path}",
        meter=Free(),
        names=(_POD, *names),
        hands_out=hands_out,
        namespaced=_CLIENT_ID,
        example=_example(f"/v0/pods/{{pod_id}}/{path}", b"", answer),
    )


def _address(fields: Mapping[str, Any]) -> str | None:
    """Of the inbox that a request asks for; None where the vendor makes up a name."""
    username, domain = fields.get("username"), fields.get("domain")
    if username is None:
        return None
    name = str(username).strip().lower()
    return name if "@" in name else f"{name}@{str(domain or DOMAIN).strip().lower()}"


def _made(path: str, upstream_path: str, *, names: tuple[Names, ...], homes: tuple[str, ...]) -> Operation:
    """A new inbox."""
    body = b'{"username":"wren","display_name":"Wren","client_id":"first"}'
    return Operation(
        "POST",
        path,
        meter=Free(),
        upstream_path=upstream_path,
        homes=homes,
        names=names,
        hands_out=_MADE,
        namespaced=_CLIENT_ID,
        tag=TAG,
        at_most=(INBOX, INBOXES_ENV),
        chooses=Chooses(INBOX, _address, "This name is taken."),
        may_lack_body=True,
        example=_example(path, body, _INBOX_JSON),
    )


def _sends(
    path: str,
    meter: Meter,
    body: bytes,
    *,
    looks_up: LookUp | None = None,
    usage: Usage = _ONE_EMAIL,
    not_during: tuple[str, ...] = (),
    touches: tuple[str, str] | None = None,
) -> Operation:
    """A message goes out: charged and counted by its recipients, and never twice."""
    return Operation(
        "POST",
        path,
        meter=meter,
        names=(_IN_PATH,),
        quotas=("emails",),
        is_idempotent=True,
        looks_up=looks_up,
        not_during=not_during,
        touches=touches,
        may_lack_body=looks_up is not None,
        example=_example(path, body, _SENT_JSON, usage=usage),
    )


_ANSWERED = LookUp(_MESSAGE.replace(":*", ""), _NOT_FOUND)
_NAMED = LookUp(
    _MESSAGE.replace(":*", ""), _NOT_FOUND, when=drafts.names_message, pieces=drafts.named_message
)
"""The message that a new draft is made from: in the draft's own inbox, or there is none."""
_DRAFTED = LookUp(_DRAFT, _NOT_FOUND, behind=replace(_NAMED, when=drafts.is_without_recipients))
_CHANGED = LookUp(
    _DRAFT,
    _NOT_FOUND,
    when=drafts.may_schedule,
    behind=replace(_NAMED, when=drafts.is_scheduled_without_recipients),
)
_THIS_DRAFT = (DRAFT, "draft_id")
_BY_LABEL = f"labels=%5B%22{MARK}{{tag}}%22%5D"
"""A list in a query is JSON (agentmail 2.0.18, Python)."""
_SENT_LATER = Scheduled(
    kind=DRAFT,
    id_piece="draft_id",
    about=(INBOX, "inbox_id"),
    path=f"{_INBOXES}/{{about}}/drafts/{{id}}",
    listed=f"{_INBOXES}/{{about}}/drafts?{_BY_LABEL}",
    done=f"{_INBOXES}/{{about}}/messages?{_BY_LABEL}&include_trash=true",
    marked=drafts.marked,
    id_of=drafts.draft_id_of,
    found=drafts.listed_draft,
    stands=drafts.will_be_sent,
    used=drafts.sent_by,
    ended_by=(f"DELETE {_DRAFT}", f"POST {_DRAFT}/send", f"DELETE {_ONE}"),
    ending=Ending("DELETE", f"{_INBOXES}/{{about}}/drafts/{{id}}"),
)


def _drafts(
    method: str,
    path: str,
    body: bytes,
    *,
    looks_up: LookUp,
    scheduled: Scheduled = _SENT_LATER,
    touches: tuple[str, str] | None = None,
    not_during: tuple[str, ...] = (),
) -> Operation:
    """A draft is made or changed, and may be scheduled by that."""
    return Operation(
        method,
        path,
        meter=DraftMeter(),
        names=(_IN_PATH,),
        namespaced=_CLIENT_ID,
        quotas=("emails",),
        looks_up=looks_up,
        not_during=not_during,
        scheduled=scheduled,
        touches=touches,
        example=_example(path, body, _DRAFT_JSON),
    )


SURFACE = Surface(
    name="agentmail",
    provider="agentmail",
    mounts=("/api/agentmail",),
    upstream=Upstream(
        "https://api.agentmail.to",
        url_env="AGENTMAIL_UPSTREAM_URL",
        key_env="AGENTMAIL_API_KEY",
        credential=BEARER,
    ),
    token_places=(BEARER, HeaderKey("x-api-key")),
    homes=(
        Home(
            POD,
            POD,
            "/v0/pods",
            body=lambda tag: {"name": tag, "client_id": tag},
            id_field="pod_id",
        ),
        Home(
            INBOX,
            INBOX,
            "/v0/pods/{pod}/inboxes",
            body=lambda tag: {"client_id": f"{tag}-home"},
            id_field="inbox_id",
            within=(POD,),
            is_caseless=True,
            may_end=True,
        ),
    ),
    swept=(
        Swept(
            INBOX,
            _INBOXES,
            "inbox_id",
            items="inboxes",
            tag="client_id",
            within=(POD, "pod_id"),
            page=("next_page_token", "page_token"),
            is_caseless=True,
        ),
    ),
    operations=(
        SOCKET,
        _in_pod("GET", _INBOXES, _INBOXES_JSON, hands_out=_LISTED, namespaced=_CLIENT_ID),
        _made(_INBOXES, "/v0/pods/{pod}/inboxes", names=(), homes=(POD,)),
        _in_pod("GET", f"{_INBOXES}/search", _INBOXES_JSON, hands_out=_LISTED, namespaced=_CLIENT_ID),
        _free("GET", _ONE, _INBOX_JSON, namespaced=_CLIENT_ID),
        _free("PATCH", _ONE, _INBOX_JSON, b'{"display_name":"Wren"}', namespaced=_CLIENT_ID),
        Operation(
            "DELETE",
            _ONE,
            meter=Free(),
            names=(_IN_PATH,),
            ends=(INBOX, "inbox_id"),
            touches=(INBOX, "inbox_id"),
            may_lack_body=True,
            example=_example(_ONE, b"", b""),
        ),
        _free("GET", f"{_ONE}/metrics/usage", b'{"emails":1}'),
        _free("GET", f"{_ONE}/metrics/rates", b'{"bounce_rate":0.0}'),
        _free("GET", f"{_ONE}/events", b'{"count":0,"limit":10,"events":[]}', renders=_without_account),
        # Of messages, what has a word behind the id stands first: an id may have slashes.
        _free("GET", f"{_ONE}/messages", MESSAGES_JSON),
        _free("GET", f"{_ONE}/messages/search", MESSAGES_JSON),
        _free(
            "POST", f"{_ONE}/messages/batch-get", b'{"messages":[]}', b'{"message_ids":["<m1@agentmail.to>"]}'
        ),
        _free(
            "POST",
            f"{_ONE}/messages/batch-update",
            b'{"updates":[]}',
            b'{"message_ids":["<m1@agentmail.to>"],"add_labels":["kept"]}',
        ),
        _sends(f"{_ONE}/messages/send", SendMeter(of_request), _SEND_JSON),
        _sends(f"{_MESSAGE}/reply", SendMeter(of_reply), _TEXT_JSON, looks_up=_ANSWERED),
        _sends(
            f"{_MESSAGE}/reply-all",
            SendMeter(of_reply_all),
            _TEXT_JSON,
            looks_up=_ANSWERED,
        ),
        _sends(f"{_MESSAGE}/forward", SendMeter(of_request), b'{"to":["ann@example.com"]}'),
        _free("GET", f"{_MESSAGE}/raw", b'{"download_url":"https://files.example/m1"}'),
        _free("GET", f"{_MESSAGE}/attachments/{{attachment_id}}", _ATTACHMENT_JSON),
        _free("GET", _MESSAGE, MESSAGE_JSON),
        _free("PATCH", _MESSAGE, _LABELS_JSON, _LABEL_JSON),
        _free("DELETE", _MESSAGE, b""),
        _free("GET", f"{_ONE}/threads", _THREADS_JSON),
        _free("GET", f"{_ONE}/threads/search", _THREADS_JSON),
        _free("GET", f"{_ONE}/threads/{{thread_id}}", _THREAD_JSON),
        _free("GET", f"{_ONE}/threads/{{thread_id}}/attachments/{{attachment_id}}", _ATTACHMENT_JSON),
        _free(
            "PATCH", f"{_ONE}/threads/{{thread_id}}", b'{"thread_id":"thd1","labels":["kept"]}', _LABEL_JSON
        ),
        _free("DELETE", f"{_ONE}/threads/{{thread_id}}", b""),
        _free("GET", f"{_ONE}/drafts", _DRAFTS_JSON, namespaced=_CLIENT_ID),
        _drafts(
            "POST",
            f"{_ONE}/drafts",
            _SEND_JSON,
            looks_up=_NAMED,
            scheduled=replace(_SENT_LATER, name_field="client_id"),
        ),
        _free("GET", f"{_ONE}/drafts/{{draft_id}}", _DRAFT_JSON, namespaced=_CLIENT_ID),
        _free("GET", f"{_ONE}/drafts/{{draft_id}}/attachments/{{attachment_id}}", _ATTACHMENT_JSON),
        _drafts(
            "PATCH",
            _DRAFT,
            b'{"subject":"Hello"}',
            looks_up=_CHANGED,
            touches=_THIS_DRAFT,
            not_during=(f"POST {_DRAFT}/send", f"PATCH {_DRAFT}"),
        ),
        _free("DELETE", _DRAFT, b"", touches=_THIS_DRAFT),
        _sends(
            f"{_DRAFT}/send",
            SendMeter(of_draft),
            b"{}",
            looks_up=_DRAFTED,
            not_during=(f"PATCH {_DRAFT}",),
            touches=_THIS_DRAFT,
        ),
        _free("GET", _LIST, _LIST_JSON, renders=_without_account),
        _free("POST", _LIST, _ENTRY_JSON, b'{"entry":"ann@example.com"}', renders=_without_account),
        _free("GET", f"{_LIST}/{{entry}}", _ENTRY_JSON, renders=_without_account),
        _free("DELETE", f"{_LIST}/{{entry}}", b""),
        _in_pod("GET", "/v0/threads", _THREADS_JSON),
        _in_pod("GET", "/v0/threads/search", _THREADS_JSON),
        _in_pod("GET", "/v0/threads/{thread_id}", _THREAD_JSON),
        _in_pod("GET", "/v0/threads/{thread_id}/attachments/{attachment_id}", _ATTACHMENT_JSON),
        _in_pod("GET", "/v0/drafts", _DRAFTS_JSON, namespaced=_CLIENT_ID),
        _in_pod("GET", "/v0/drafts/{draft_id}", _DRAFT_JSON, namespaced=_CLIENT_ID),
        _in_pod("GET", "/v0/drafts/{draft_id}/attachments/{attachment_id}", _ATTACHMENT_JSON),
        _of_pod("inboxes", _INBOXES_JSON, hands_out=_LISTED),
        _of_pod("inboxes/search", _INBOXES_JSON, hands_out=_LISTED),
        _of_pod("inboxes/{inbox_id}", _INBOX_JSON, names=(_IN_PATH,)),
        _made("/v0/pods/{pod_id}/inboxes", "", names=(_POD,), homes=()),
        _of_pod("threads", _THREADS_JSON),
        _of_pod("threads/search", _THREADS_JSON),
        _of_pod("threads/{thread_id}", _THREAD_JSON),
        _of_pod("drafts", _DRAFTS_JSON),
        _of_pod("drafts/{draft_id}", _DRAFT_JSON),
    ),
    dialect=AgentMailDialect(),
    dropped_answer_headers=("x-ratelimit-*",),
    options=(
        Option(
            INBOXES_ENV,
            "3",
            "How many inboxes a user may have: the account's plan has so many for all.",
            unit="inboxes",
        ),
        Option(
            SCHEDULED_DAYS_ENV,
            "30",
            "How far ahead a draft may be scheduled: what it will cost is held until then.",
            unit="days",
        ),
    ),
)
