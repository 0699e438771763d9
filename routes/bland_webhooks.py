"""What Bland tells of a call: `/api/webhooks/bland/status/{token}` of one that we had dialled, and without a token of one that comes
in, whose number the operator set up with that address.

Signed over the body alone, with no time and no id (its page on webhook signing, 2026-11): so a delivery does nothing but have the call
asked about, and what that answers is booked once. In-call events (no `status`) and what comes after a completion (an
`event_type`) are taken and passed over.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.errors import Reason, Refused
from metering.objects import ObjectId
from metering.return_addresses import ReturnAddresses
from metering.store.writer import Step
from metering.values import immutable
from proxy.ownership import ID_CHARS_MAX
from proxy.webhooks import ForgedError, verify_body
from routes.webhooks import TAKEN, Receiver, body_of

VENDOR, CALL = "bland", "call"
PATH = "/api/webhooks/bland/status"
SECRET_ENV = "BLAND_WEBHOOK_SECRET"
SIGNATURE = "x-webhook-signature"


@immutable
class CallReceiver:
    """Takes deliveries. `reported_of`: what must be written for the work of one request to be asked about at once;
    `arrived`: takes on a call that nobody has asked for."""

    receiver: Receiver
    keys: tuple[bytes, ...]
    addresses: ReturnAddresses
    reported_of: Callable[[str, str], Step]
    arrived: Callable[[ObjectId], Awaitable[None]]

    async def take(self, token: str | None, signature: str, body: bytes) -> None:
        """Raises Refused: UNAUTHENTICATED, NOT_CONFIGURED, BAD_REQUEST, STORE_UNAVAILABLE, UPSTREAM_*."""
        if not self.keys:
            raise Refused(Reason.NOT_CONFIGURED, f"The operator must set {SECRET_ENV}.")
        try:
            verify_body(self.keys, signature, body)
        except ForgedError as error:
            raise Refused(Reason.UNAUTHENTICATED, f"The webhook is not taken: {error}.") from None
        request_id = None if token is None else await self.addresses.request_of(token)
        if token is not None and request_id is None:
            raise Refused(Reason.UNAUTHENTICATED, "The webhook is not taken: its address is none of ours.")
        one = _ended_call(_event(body))
        if one is None:
            return
        if request_id is not None:
            steps = [self.reported_of(request_id, one.upstream_id)]
        else:
            if one not in await self.receiver.objects.stored_owners([one]):
                await self.arrived(one)
            steps = list(self.receiver.reported(one))
        delivery_id = hashlib.sha256(b"\0".join(((token or "").encode(), body))).hexdigest()
        await self.receiver.hooks.take(VENDOR, delivery_id, (), *steps)


def call_webhook_routes(receiver: CallReceiver) -> list[Route]:
    async def call_webhook(request: Request) -> Response:
        signature = request.headers.get(SIGNATURE, "")
        await receiver.take(request.path_params.get("token"), signature, await body_of(request))
        return Response(status_code=TAKEN)

    return [
        Route(PATH, call_webhook, methods=["POST"]),
        Route(f"{PATH}/{{token}}", call_webhook, methods=["POST"]),
    ]


def _event(body: bytes) -> Mapping[str, Any]:
    """Raises Refused(BAD_REQUEST)."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(Reason.BAD_REQUEST, "The webhook's body is not valid JSON.") from None
    return event if isinstance(event, dict) else {}


def _ended_call(event: Mapping[str, Any]) -> ObjectId | None:
    """The call that an event says has ended."""
    call_id, status = event.get("call_id"), event.get("status")
    if event.get("event_type") is not None or not isinstance(status, str) or not status:
        return None
    if not isinstance(call_id, str) or not 0 < len(call_id) <= ID_CHARS_MAX:
        return None
    return ObjectId(VENDOR, CALL, call_id)
