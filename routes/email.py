"""E-mail as the service that we replace had it: send, list, read, in the one inbox that every user has.

The same vendor, pods, quotas and prices as `routes/agentmail.py`; other paths, and bodies that its callers know.
"""

from dataclasses import replace

import orjson

from metering.errors import Reason, Refused
from metering.rate_state import Standing
from metering.usage import MESSAGES, RECIPIENTS, Usage, UsageLine
from proxy.errors import TOO_MANY_REQUESTS, PlainJson, retry_headers
from proxy.meters import Free
from proxy.surface import Example, Headers, Inbound, Operation, Rendered, Surface
from routes import agentmail
from routes.agentmail_errors import AgentMailDialect
from routes.agentmail_meter import PRODUCT, SendMeter, of_request
from routes.agentmail_socket import INBOX
from routes.counting import object_of

_INBOX = (INBOX,)
_MESSAGES = "/v0/inboxes/{inbox}/messages"
_VENDOR = AgentMailDialect()


class EmailDialect(PlainJson):
    """`{"error": "text"}`; the day's limit is 429 with the fields that callers read."""

    def refusal(self, refused: Refused, request_id: str) -> Rendered:
        facts = refused.facts
        if refused.reason is not Reason.BUDGET_EXHAUSTED or facts.get("quota") != "emails":
            shown = {name: value for name, value in facts.items() if name != "upstream_status"}
            return super().refusal(replace(refused, facts=shown), request_id)
        body = {
            "error": "Daily email limit reached",
            "message": refused.message,
            "limit": facts.get("limit_emails", 0),
            "sent": facts.get("used_emails", 0),
            "resetsAt": facts.get("resets_at"),
            "request_id": request_id,
        }
        headers = [(b"content-type", b"application/json"), *retry_headers(refused)]
        return Rendered(TOO_MANY_REQUESTS, headers, orjson.dumps(body))

    def account_problem(self, status: int, body: bytes, headers: Headers) -> Refused | None:
        return _VENDOR.account_problem(status, body, headers)

    def shown_error(self, body: bytes) -> bytes | None:
        """The vendor's words where they are about the request."""
        shown = object_of(_VENDOR.shown_error(body) or b"")
        return orjson.dumps({"error": shown.get("message", "The vendor refused the request.")})


def _recipients(request: Inbound) -> int:
    """Of a request that names what callers of this API must. Raises Refused(BAD_REQUEST)."""
    for name in ("to", "subject"):
        if not request.fields.get(name):
            raise Refused(Reason.BAD_REQUEST, f"{name}: is required.")
    return of_request(request)


def _sent(body: bytes, standing: Standing) -> bytes:
    """What callers read of a message that was sent."""
    sent = object_of(body)
    left = [quota.remaining for quota in standing.quotas if quota.meter == "emails"]
    return orjson.dumps(
        {
            "success": True,
            "messageId": sent.get("message_id"),
            "threadId": sent.get("thread_id"),
            "remaining": left[0] if left else None,
        }
    )


SURFACE = Surface(
    name="email",
    provider=agentmail.SURFACE.provider,
    mounts=("/api/user/email", "/api/email"),
    upstream=agentmail.SURFACE.upstream,
    token_places=agentmail.SURFACE.token_places,
    homes=agentmail.SURFACE.homes,
    operations=(
        Operation(
            "POST",
            "/send",
            meter=SendMeter(_recipients),
            upstream_path=f"{_MESSAGES}/send",
            homes=_INBOX,
            query=(),
            quotas=("emails",),
            is_idempotent=True,
            renders=_sent,
            example=Example(
                "/send",
                body=b'{"to":"ann@example.com","subject":"Hello","text":"Hello."}',
                answer=b'{"message_id":"<m2@agentmail.to>","thread_id":"thd1"}',
                usage=Usage((UsageLine(PRODUCT, {RECIPIENTS: 1, MESSAGES: 1}),)),
            ),
        ),
        Operation(
            "GET",
            "/inbox",
            meter=Free(),
            upstream_path=_MESSAGES,
            homes=_INBOX,
            query=("limit", "page_token", "labels", "before", "after", "ascending"),
            example=Example("/inbox", answer=agentmail.MESSAGES_JSON),
        ),
        Operation(
            "GET",
            "/inbox/{message_id:*}",
            meter=Free(),
            upstream_path=f"{_MESSAGES}/{{message_id}}",
            homes=_INBOX,
            query=(),
            example=Example("/inbox/%3Cm1@agentmail.to%3E", answer=agentmail.MESSAGE_JSON),
        ),
    ),
    dialect=EmailDialect(),
    dropped_answer_headers=agentmail.SURFACE.dropped_answer_headers,
)
