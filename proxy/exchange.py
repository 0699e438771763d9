"""The state that the phases of one request share: one object, named fields, no strings to look up."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from metering.admission import Admitted, Caller, require_surface
from metering.errors import Refused
from metering.ledger import Outcome, Resolved
from metering.prices import Priced
from metering.repeats import Repeat
from proxy.downstream import Connection
from proxy.handshakes import Handshake, Side, Tally
from proxy.remembered import AccessKey
from proxy.request import Request
from proxy.splice import Splice
from proxy.surface import NO_DEMAND, Demand, Inbound, Observer, Operation, Surface

PHASES = MATCH, AUTHENTICATE, READ, ADMIT, FORWARD, RELAY, SETTLE = (
    "match",
    "authenticate",
    "read",
    "admit",
    "forward",
    "relay",
    "settle",
)
"""Of a request, in their order (docs/architecture.md says what each is)."""


class ClientLeftError(Exception):
    """The client closed its connection before its request was forwarded: there is nobody to serve."""


class Exchange:
    """One request and its answer, from the first phase to the canonical line."""

    __slots__ = (
        "access_key",
        "access_lost",
        "admitted",
        "admitted_s",
        "bytes_passed",
        "caller",
        "cause",
        "checkpoint_nanousd",
        "client_left",
        "connection",
        "demand",
        "drain_timer",
        "first_byte_s",
        "gateway_token",
        "handshake",
        "head_is_out",
        "inbound",
        "is_charged",
        "is_deferred",
        "is_done",
        "is_estimated",
        "is_forwarded",
        "is_lost",
        "is_scheduled",
        "leads_to",
        "notes",
        "observer",
        "on_access_lost",
        "on_client_gone",
        "operation",
        "outcome",
        "own_ids",
        "phase",
        "priced",
        "refused",
        "repeat",
        "request",
        "request_id",
        "says",
        "settled",
        "sides",
        "splice",
        "splice_ended",
        "started_s",
        "status",
        "surface",
        "tally",
        "touches_scheduled",
        "upstream_request_id",
        "upstream_status",
    )

    started_s: float
    """`time.monotonic`, as all instants here: the clock of uvloop's loop moves in milliseconds."""
    phase: str
    """Which of PHASES is under way. Nothing depends on it: it is there for whoever takes their times (phase_times.py)."""
    operation: Operation | None
    caller: Caller | None
    handshake: Handshake | None
    """Where it asks for a websocket: what that takes."""
    gateway_token: bytes
    """Kept to keep it from going up, wherever the client repeats it; never in a log, row or answer."""
    access_key: AccessKey
    """By what its caller was let in, and would be again."""
    leads_to: str
    """The object that its spliced websocket leads to."""
    inbound: Inbound | None
    demand: Demand
    repeat: Repeat | None
    """How it stands to the same request before, where it must not be done twice."""
    own_ids: Collection[str]
    """What of the list that it asks for is its user's."""
    says: dict[str, str]
    """Fields at the top of its body that go up beside its client's, or instead of them."""
    admitted: Admitted | None
    admitted_s: float | None
    """Monotonic: when the reservation was durable."""
    is_forwarded: bool
    """From here on the vendor may see it."""
    is_lost: bool
    """The vendor had it, and its answer did not come: whatever is answered to another try, it may have been done."""
    observer: Observer | None
    upstream_status: int | None
    upstream_request_id: str | None
    checkpoint_nanousd: int
    """What the last checkpoint noted for the case that we die, or can read no usage."""
    access_lost: Refused | None
    """Why its caller would not be let in any more; it may go on to its end all the same, where nothing is streamed."""
    on_access_lost: Callable[[Refused], None] | None
    sides: tuple[Side, Side] | None
    """Of its websocket, once it is open: the client's and the vendor's."""
    splice: Splice | None
    """Of its spliced websocket, once it is open; and what is done when that has ended."""
    splice_ended: asyncio.Future[None] | None
    tally: Tally | None
    """What passed on its websocket; of a spliced one, as bytes up and down."""
    bytes_passed: tuple[int, int] | None
    client_left: bool
    on_client_gone: Callable[[], None] | None
    """What the connection calls when the client leaves, while the exchange is open."""
    drain_timer: Any
    head_is_out: bool
    status: int
    """What the client was told; 0 while it was told nothing."""
    first_byte_s: float | None
    """Monotonic: when the first byte of the vendor's answer body went down."""
    is_done: bool
    """The client has the whole answer."""
    refused: Refused | None
    outcome: Outcome | None
    settled: asyncio.Future[Resolved] | None
    """The resolution of the reservation, from the moment it is queued."""
    is_deferred: bool
    """It is written where to ask about its work, should that go on."""
    priced: Priced | None
    is_scheduled: bool
    """It only schedules its work, which is written down with its reservation."""
    touches_scheduled: bool
    """It may change or end scheduled work."""
    is_charged: bool
    """What it has used counts against the minute's tokens."""
    is_estimated: bool
    """What is booked is no report of the vendor's."""
    notes: tuple[str, ...]
    """What was odd about it, as the entry has it."""
    cause: str | None
    """What went wrong on the vendor's side, in the words of the client that speaks to it."""

    def __init__(
        self,
        surface: Surface,
        request: Request,
        connection: Connection,
        request_id: str,
        started_s: float,
    ) -> None:
        self.surface = surface
        self.request = request
        self.connection = connection
        self.request_id = request_id
        self.started_s = started_s
        self.phase = MATCH

        self.operation = self.caller = self.handshake = self.inbound = self.repeat = None
        self.gateway_token = self.access_key = b""
        self.leads_to = ""
        self.demand = NO_DEMAND
        self.own_ids = ()
        self.says = {}

        self.admitted = self.admitted_s = self.observer = None
        self.is_forwarded = self.is_lost = False
        self.upstream_status = self.upstream_request_id = None
        self.checkpoint_nanousd = 0

        self.access_lost = self.on_access_lost = None
        self.sides = self.splice = self.splice_ended = self.tally = self.bytes_passed = None
        self.on_client_gone = self.drain_timer = None
        self.client_left = self.head_is_out = self.is_done = False
        self.status = 0

        self.first_byte_s = self.refused = self.outcome = self.settled = self.priced = self.cause = None
        self.is_deferred = self.is_scheduled = self.touches_scheduled = False
        self.is_charged = self.is_estimated = False
        self.notes = ()

    def require_access(self, caller: Caller) -> None:
        """Raises Refused where a caller, as it is now, would not be let in to this. What has been admitted stays so: only
        a websocket, which has no end, depends on plan and scope to the last."""
        operation = self.operation
        if operation is not None and operation.is_websocket:
            require_surface(caller, self.surface.name)
            if caller.token is not None:
                caller.token.require(self.surface.name, operation.name)

    def lose_access(self, refused: Refused) -> None:
        self.access_lost = refused
        if self.on_access_lost is not None:
            self.on_access_lost(refused)
