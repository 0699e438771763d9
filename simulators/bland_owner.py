"""What Bland lets the owner of the account see and do, for all tenants at once. A proxy must never let a tenant get here."""

from collections.abc import Mapping
from typing import Any

from metering.clock import instant
from simulators import bland_errors as errors
from simulators.bland_account import Account
from simulators.bland_behaviour import OPERATOR, ORGANIZATION_ID, PLAN
from simulators.bland_calls import Calls
from simulators.bland_turn import PREFIX, Answer, Handler, Request
from simulators.paths import routes

COLLECTIONS = [
    "orgs",
    "accounts",
    "subaccounts",
    "audit/logs",
    "batches",
    "campaigns",
    "contacts",
    "pathway",
    "pathways",
    "convo_pathway",
    "personas",
    "tools",
    "voices",
    "knowledgebases",
    "knowledge",
    "memory",
    "blocked_numbers",
    "sip",
    "agents",
    "prompts",
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Owner:
    """`GET /me`, the stop of every running call, and one answer for all collections of the account: nothing is kept or done
    behind those, but who gets to read it has been let too far."""

    def __init__(self, account: Account, calls: Calls) -> None:
        self._account = account
        self._calls = calls
        collections: Mapping[str, Handler] = {
            f"{method} /{name}{tail}": self._collection
            for method in METHODS
            for name in COLLECTIONS
            for tail in ("", "/{rest}")
        }
        whole: Mapping[str, Handler] = {
            "GET /me": self._me,
            "POST /calls/active/stop": self._stop_all,
            "POST /calls/active/transfer": self._transfer_all,
            "POST /postcall/webhooks/create": self._collection,
            "POST /postcall/webhooks/resend": self._collection,
        }
        self.routes = routes(whole, PREFIX)
        """To be looked through before those of single calls."""
        self.collections = routes(collections, PREFIX, slashed=("rest",))

    def _me(self, request: Request) -> Answer:  # noqa: ARG002 - the signature of a handler
        return {
            "status": "active",
            "org_id": ORGANIZATION_ID,
            "billing": {"current_balance": float(self._account.balance_usd), "refill_to": None},
            "total_calls": len(self._calls.by_id),
        }

    def _stop_all(self, request: Request) -> Answer:  # noqa: ARG002 - the signature of a handler
        running = self._calls.running
        for call in running:
            self._calls.stop(call)
        message = "Stopping active calls. This may take some time..."
        return {"status": "success", "message": message, "num_calls": len(running)}

    def _transfer_all(self, request: Request) -> Answer:
        to = request.fields().get("transfer_number")
        if not isinstance(to, str):
            raise errors.invalid("transfer_number: required")
        connected = [call for call in self._calls.running if call.is_connected]
        for call in connected:
            self._calls.transfer(call, to)
        return {"status": "success", "message": "Transferring active calls", "num_calls": len(connected)}

    def _collection(self, request: Request) -> Answer:
        data: dict[str, Any] = {
            "org_id": ORGANIZATION_ID,
            "owner": OPERATOR,
            "plan": PLAN,
            "path": request.received.path,
            "numbers": list(self._account.numbers),
            "call_ids": list(self._calls.by_id),
            "at": instant(self._account.now_ms()),
        }
        return {"data": data, "errors": None}
