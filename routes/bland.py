"""Bland: phone calls by an agent that talks.

All users share one account at the vendor. A call belongs to the user who had it dialled; lists show only what is theirs. A
call goes out from a number that is assigned to its user, is bounded by what the plan and the budget have left, is held slice by
slice while somebody talks, and is billed by what the vendor tells of it at its end. It is dialled once: a request whose answer
is lost is looked for, never repeated. Undeclared, so it does not exist: what is about the whole account (balance,
organizations, batches, pathways, personas, tools, voices, memories, numbers, webhooks, the end of all running calls), what
gives access to a call to whoever knows its address (listen, transcript streams), and what costs at prices that are not known
(texts, analyses). Of lists, pages are not served: their places count everybody's calls. Paths and bodies: the vendor's
documentation, 2026-11.
"""

from metering.ledger import OPEN_CALLS
from metering.usage import CALL_SECONDS, NOTHING, Usage, UsageLine
from proxy.meters import Free
from proxy.surface import (
    BEARER,
    Arrives,
    Deferred,
    Ending,
    Example,
    Fills,
    HandsOut,
    HeaderKey,
    Keeps,
    Names,
    Operation,
    Option,
    Surface,
    Swept,
    Tag,
    Timed,
    Upstream,
)
from routes.bland_answers import without_account
from routes.bland_errors import BlandDialect
from routes.bland_meter import (
    BYOT_ENV,
    MINUTES_ENV,
    MINUTES_MAX_ENV,
    PRODUCT,
    CallMeter,
    inbound_demand,
    is_running,
    waited_s,
)
from routes.bland_notices import call_completed
from routes.bland_records import record_of
from routes.bland_requests import ABROAD, DESTINATIONS_ENV, NOT_DESTINATIONS_ENV, PREFIXES, PREFIXES_EXPECTED

CALL, NUMBER = "call", "number"
"""Kinds of objects that the vendor keeps."""
POLL_S, SLICE_S, DUE_S = 10.0, 120, 900.0
"""Between two looks at a call that runs; what is held of its time ahead; how long a hold lives without a word of it."""
WAITS_S_MAX = 600
"""How long a call is believed to be queued and to ring: of one whose beginning is not told, or told wrong, time is granted
from then on."""
GIVEN_UP_AFTER_S = 86_400.0
"""Twice what a call may take at the vendor."""

_NOT_FOUND = "Call not found"
_IN_PATH = Names(CALL, _NOT_FOUND, path_param="call_id")
_TAG = Tag("metadata.automna")
"""Callers' own metadata stands beside it."""
_FILTERS = (
    *("ascending", "from_number", "to_number", "start_date", "end_date", "created_at"),
    *("completed", "inbound", "answered_by"),
)
_ONE = "/v1/calls/{call_id}"
_RUNNING = Swept(
    CALL,
    "/v1/calls?completed=false&limit=1000",
    "call_id",
    items="calls",
    tag=_TAG.field,
    details="/v1/calls/{id}",
)
"""As many as one answer of the vendor has; its largest plan has a hundred at once."""
_TO_NUMBER = Swept(
    CALL,
    "/v1/calls?to_number={number}&limit=100",
    "call_id",
    items="calls",
    tag=_TAG.field,
    details="/v1/calls/{id}",
)
"""The newest first; a number is not dialled twice within ten seconds."""

_INBOUND = Arrives(
    "inbound call",
    "POST /v1/calls",
    Swept(CALL, "/v1/calls?inbound=true&limit=1000", "call_id", items="calls", within=(NUMBER, "to")),
    "created_at",
    lambda call: call.get("inbound") is True,
    inbound_demand,
)

_ID = "0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11"
_CALL_JSON = (
    b'{"call_id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","created_at":"2026-11-20T12:00:00.000Z",'
    b'"started_at":"2026-11-20T12:00:05.000Z","end_at":"2026-11-20T12:00:47.000Z","to":"+12025550100",'
    b'"from":"+14155550000","completed":true,"inbound":false,"queue_status":"complete","status":"completed",'
    b'"answered_by":"human","call_length":0.7,"corrected_duration":"42","price":0.098}'
)


def _free(
    method: str,
    path: str,
    answer: bytes,
    *,
    names: tuple[Names, ...] = (_IN_PATH,),
    content_type: str = "application/json",
    keeps: Keeps | None = None,
    query: tuple[str, ...] | None = None,
    is_shown_whole: bool = False,
) -> Operation:
    return Operation(
        method,
        path,
        meter=Free(),
        names=names,
        keeps=keeps,
        query=query,
        hides=() if is_shown_whole else (_TAG.key,),
        renders=None if is_shown_whole else without_account,
        may_lack_body=method == "POST",
        example=Example(
            path.replace("{call_id}", _ID), answer=answer, answer_content_type=content_type, usage=NOTHING
        ),
    )


SURFACE = Surface(
    name="bland",
    provider="bland",
    mounts=("/api/bland",),
    upstream=Upstream(
        "https://api.bland.ai",
        url_env="BLAND_UPSTREAM_URL",
        key_env="BLAND_API_KEY",
        credential=HeaderKey("authorization"),
        secret_headers={"encrypted_key": BYOT_ENV},
    ),
    token_places=(BEARER, HeaderKey("authorization"), HeaderKey("x-api-key")),
    operations=(
        Operation(
            "POST",
            "/v1/calls",
            meter=CallMeter(),
            fills=(
                Fills(NUMBER, "from", "from: no phone number is assigned to you.", "from: is none of yours."),
            ),
            told_at=("webhook", "/api/webhooks/bland/status"),
            tag=_TAG,
            hands_out=(HandsOut(CALL, "call_id"),),
            quotas=("call_seconds",),
            timed=Timed(PRODUCT, CALL_SECONDS, OPEN_CALLS, SLICE_S, waited_s, WAITS_S_MAX),
            deferred=Deferred(
                CALL,
                "/v1/calls/{id}",
                is_running,
                ending=Ending("POST", "/v1/calls/{id}/stop", b"{}"),
                poll_s=POLL_S,
                due_s=DUE_S,
                given_up_after_s=GIVEN_UP_AFTER_S,
                by_tag=_TO_NUMBER,
                tells=call_completed,
                records=record_of,
            ),
            example=Example(
                "/v1/calls",
                body=b'{"phone_number":"+12025550100","task":"Say hello.","max_duration":2}',
                answer=_CALL_JSON,
                usage=Usage((UsageLine(PRODUCT, {CALL_SECONDS: 42}),)),
            ),
        ),
        _free(
            "GET",
            "/v1/calls",
            b'{"total_count":1,"count":1,"calls":[' + _CALL_JSON + b"]}",
            names=(),
            keeps=Keeps(CALL, "call_id", "calls", ("total_count", "count")),
            query=_FILTERS,
        ),
        _free(
            "GET",
            "/v1/calls/active",
            b'{"data":[{"call_id":"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11","to":"+12025550100","status":"started"}],'
            b'"errors":null}',
            names=(),
            keeps=Keeps(CALL, "call_id", "data"),
        ),
        _free("GET", _ONE, _CALL_JSON),
        _free("GET", f"{_ONE}/correct", b'{"status":"success","corrected":[],"aligned":[]}'),
        _free("POST", f"{_ONE}/stop", b'{"status":"success","message":"Call ended successfully."}'),
        _free("GET", "/v1/event_stream/{call_id}", b"[]", is_shown_whole=True),
        _free(
            "GET",
            "/v1/recordings/{call_id}",
            b"RIFF",
            content_type="audio/wav",
            is_shown_whole=True,
        ),
    ),
    swept=(_RUNNING,),
    arrivals=(_INBOUND,),
    dialect=BlandDialect(),
    options=(
        Option(
            BYOT_ENV,
            "",
            "The secret (`encrypted_key`) of the operator's own Twilio account at Bland: calls go out by that.",
        ),
        Option(MINUTES_ENV, "10", "How long a call may take that does not say.", unit="minutes"),
        Option(MINUTES_MAX_ENV, "60", "How long a call may take at most, whatever it says.", unit="minutes"),
        Option(
            DESTINATIONS_ENV,
            "+1",
            "What numbers that may be dialled begin with, separated by commas.",
            pattern=PREFIXES,
            expected=PREFIXES_EXPECTED,
        ),
        Option(
            NOT_DESTINATIONS_ENV,
            ABROAD,
            "And what, of these, numbers that may not: islands that share +1 and are billed as abroad.",
            pattern=PREFIXES,
            expected=PREFIXES_EXPECTED,
        ),
    ),
)
