"""What the two speeches that cost by the second have their vendors begin, as data: what a simulator knows of it, whoever was
told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.browserbase import Session
from tests.matrix.speeches import NEW_BROWSER, NEW_CALL, Speech
from tests.support.browserbase import cost_nanousd


@dataclass(frozen=True)
class Bill:
    """What a vendor charges for one that is over."""

    seconds: int
    cost_nanousd: int


@dataclass(frozen=True)
class Work:
    """`operation`, `listing` and `ending`, as METHOD and path at the vendor: makes one; looks for one by its tag; ends one, {id}."""

    speech: Speech
    operation: str
    listing: str
    ending: str
    id_field: str
    """Of the answer that tells of a new one."""
    unit: str
    """Of its time, in the ledger."""
    all_of: Callable[[Any], list[Any]]
    """That a vendor has ever begun, in order."""
    id_of: Callable[[Any], str]
    begin_to_cost: Callable[[Any, Any], None]
    end: Callable[[Any, Any], None]
    """At the vendor: by itself, or by its user."""
    bill_of: Callable[[Any], Bill | None]
    """None while it goes on."""

    def ending_of(self, one: Any) -> str:
        return self.ending.replace("{id}", self.id_of(one))


def _bill_of_session(session: Session) -> Bill | None:
    billed = session.billed()
    return None if billed is None else Bill(billed.seconds, cost_nanousd(billed.seconds))


BROWSER = Work(
    NEW_BROWSER,
    operation="POST /v1/sessions",
    listing="GET /v1/sessions",
    ending="POST /v1/sessions/{id}",
    id_field="id",
    unit="browser_seconds",
    all_of=lambda vendor: vendor.sessions,
    id_of=lambda session: session.id,
    begin_to_cost=lambda vendor, session: None,
    end=lambda vendor, session: vendor.project.release(session),
    bill_of=_bill_of_session,
)
CALL = Work(
    NEW_CALL,
    operation="POST /v1/calls",
    listing="GET /v1/calls",
    ending="POST /v1/calls/{id}/stop",
    id_field="call_id",
    unit="call_seconds",
    all_of=lambda vendor: vendor.dialled,
    id_of=lambda call: call.call_id,
    begin_to_cost=lambda vendor, call: vendor.pick_up(call),
    end=lambda vendor, call: vendor.end(call),
    bill_of=lambda call: call.billed and Bill(call.billed.seconds, call.billed.price_nanousd),
)
WORKS = (BROWSER, CALL)
