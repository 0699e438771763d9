"""Phone calls as the service that we replace had them: dial, ask what became of it.

The same vendor, numbers, quotas and prices as `routes/bland.py`; other paths, and bodies that its callers know.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from metering.errors import Reason, Refused
from metering.rate_state import Standing
from metering.usage import CALL_SECONDS, Usage, UsageLine
from proxy.errors import STATUS, TOO_MANY_REQUESTS, PlainJson, retry_headers
from proxy.meters import Free
from proxy.surface import Demand, Example, Headers, Inbound, Names, Operation, Pricing, Rendered, Surface
from routes import bland
from routes.bland_errors import BlandDialect
from routes.bland_meter import PRODUCT, SECONDS_PER_MINUTE, CallMeter, is_over, length_of
from routes.bland_records import status_of
from routes.bland_requests import e164
from routes.counting import object_of

MINUTES_DEFAULT = 5
FORBIDDEN, BAD_GATEWAY, SERVER_ERROR = 403, 502, 500
QUOTA = "call_seconds"
_US = re.compile(r"\+1[2-9][0-9]{9}")
_VENDOR = BlandDialect()
_DIAL = next(one for one in bland.SURFACE.operations if one.name == "POST /v1/calls")


class CallDialect(PlainJson):
    """`{"error": "text"}`; what is not in the plan is 403, the month's minutes are 429 with the fields that callers read, and what the
    vendor failed at is 502."""

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        facts = refused.facts
        status = STATUS[refused.reason]
        more: dict[str, Any] = {}
        if refused.reason is Reason.BUDGET_EXHAUSTED and facts.get("quota") in {QUOTA, "open_calls"}:
            if f"limit_{QUOTA}" in facts:
                status = TOO_MANY_REQUESTS
                more = {
                    f"{name}_minutes": int(facts[f"{name}_{QUOTA}"]) / SECONDS_PER_MINUTE
                    for name in ("used", "limit")
                }
            else:
                status, more = FORBIDDEN, {"upgrade_url": facts.get("upgrade_url")}
        elif refused.reason is Reason.UPSTREAM_TIMEOUT:
            status = BAD_GATEWAY
        body = {"error": refused.message, **more, "request_id": request_id}
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        return Rendered(status, headers, orjson.dumps(body))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        if status >= SERVER_ERROR:
            return Refused(Reason.UPSTREAM_UNREACHABLE, "The call could not be made: the vendor failed.")
        return _VENDOR.account_problem(status, body, headers)

    def shown_error(self, body: bytes) -> bytes | None:
        """The vendor's words where they are about the request."""
        shown = object_of(_VENDOR.shown_error(body) or b"")
        return orjson.dumps({"error": shown.get("message", "The vendor refused the request.")})


class SimpleCallMeter(CallMeter):
    """A new call, asked for in the words of this API."""

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        """Raises Refused(BAD_REQUEST)."""
        return super().read(replace(request, fields=_vendor_fields(request.fields)), pricing)


def _vendor_fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What goes up: what neither API knows is passed over, as ever. Raises Refused(BAD_REQUEST)."""
    for name in ("to", "task"):
        if not isinstance(asked.get(name), str) or not asked[name].strip():
            raise Refused(Reason.BAD_REQUEST, f"{name}: is required.")
    number = e164(asked["to"])
    if number is None or _US.fullmatch(number) is None:
        raise Refused(Reason.BAD_REQUEST, "to: must be a US phone number, as in +12025550100.")
    minutes, records = asked.get("max_duration"), asked.get("record")
    said = {
        "phone_number": number,
        "from": asked.get("from"),
        "task": asked["task"],
        "first_sentence": asked.get("first_sentence"),
        "voice": asked.get("voice_id"),
        "model": "base",
        "language": "en-US",
        "max_duration": MINUTES_DEFAULT if minutes is None else minutes,
        "record": True if records is None else records,
        "wait_for_greeting": True,
        "voicemail": _voicemail(asked),
    }
    return {name: value for name, value in said.items() if value is not None}


def _voicemail(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    action, message = asked.get("voicemail_action"), asked.get("voicemail_message")
    if action is None and message is None:
        return None
    if message is not None and not isinstance(message, str):
        raise Refused(Reason.BAD_REQUEST, "voicemail_message: must be a text.")
    if action == "leave_message" and not message:
        raise Refused(Reason.BAD_REQUEST, "voicemail_message: is required to leave a message.")
    said = {"action": "leave_message" if action is None else action, "message": message}
    return {name: value for name, value in said.items() if value is not None}


def _initiated(body: bytes, standing: Standing, asked: Mapping[str, Any]) -> bytes:
    """What callers read of a call that is queued."""
    left = [quota.remaining for quota in standing.quotas if quota.meter == QUOTA]
    return orjson.dumps(
        {
            "success": True,
            "call_id": object_of(body).get("call_id"),
            "from": asked.get("from"),
            "to": e164(str(asked.get("to"))),
            "status": "initiated",
            "remaining_minutes": left[0] // SECONDS_PER_MINUTE if left else None,
        }
    )


def _shown(body: bytes, standing: Standing) -> bytes:  # noqa: ARG001 - as Operation.renders
    """What callers read of a call."""
    call = object_of(body)
    is_done = is_over(call)
    return orjson.dumps(
        {
            "call_id": call.get("call_id"),
            "status": status_of(call) if is_done else "initiated",
            "completed": is_done,
            "direction": "inbound" if call.get("inbound") is True else "outbound",
            "to": call.get("to"),
            "from": call.get("from"),
            "duration_seconds": length_of(call)[0] if is_done else None,
            "summary": call.get("summary"),
            "transcript": call.get("concatenated_transcript"),
            "recording_url": call.get("recording_url"),
            "task": call.get("task"),
            "created_at": call.get("created_at"),
            "completed_at": call.get("end_at") if is_done else None,
        }
    )


SURFACE = Surface(
    name="call",
    provider=bland.SURFACE.provider,
    mounts=("/api/user/call", "/api/call"),
    upstream=bland.SURFACE.upstream,
    token_places=bland.SURFACE.token_places,
    operations=(
        replace(
            _DIAL,
            path="/",
            meter=SimpleCallMeter(),
            upstream_path="/v1/calls",
            query=(),
            renders=None,
            replies=_initiated,
            example=Example(
                "/",
                body=b'{"to":"+12025550100","task":"Say hello."}',
                answer=_DIAL.example.answer,
                usage=Usage((UsageLine(PRODUCT, {CALL_SECONDS: 42}),)),
            ),
        ),
        Operation(
            "GET",
            "/status",
            meter=Free(),
            upstream_path="/v1/calls/{call_id}",
            in_path=("call_id",),
            names=(Names(bland.CALL, "Call not found", query_param="call_id", is_required=True),),
            query=("call_id",),
            renders=_shown,
            example=Example("/status?call_id=c1", answer=_DIAL.example.answer),
        ),
    ),
    dialect=CallDialect(),
    dropped_answer_headers=bland.SURFACE.dropped_answer_headers,
    options=bland.SURFACE.options,
)
