"""The state that the phases of one request share: one object, named fields, no strings to look up."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from metering.admission import Admitted, Caller, require_surface
from metering.errors import Refused
from metering.ledger import Outcome, Resolved
from metering.prices import Priced
from metering.repeats import Repeat
from proxy.auth import AccessKey
from proxy.downstream import Connection
from proxy.handshakes import Handshake, Side, Tally
from proxy.splice import Splice
from proxy.surface import NO_DEMAND, Demand, Inbound, Observer, Operation, Surface

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


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
        "priced",
        "receive",
        "refused",
        "repeat",
        "request_id",
        "says",
        "scope",
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

    def __init__(  # noqa: PLR0915 - a statement for each field
        self,
        *,
        surface: Surface,
        scope: Scope,
        receive: Receive,
        connection: Connection,
        request_id: str,
        started_s: float,
    ) -> None:
        self.surface = surface
        self.scope = scope
        self.receive = receive
        self.connection = connection
        self.request_id = request_id
        self.started_s = started_s
        """`time.monotonic`, as all instants here: the clock of uvloop's loop moves in milliseconds."""

        self.operation: Operation | None = None
        self.caller: Caller | None = None
        self.handshake: Handshake | None = None
        """Where it asks for a websocket: what that takes."""
        self.gateway_token = b""
        """Kept to keep it from going up, wherever the client repeats it; never in a log, row or answer."""
        self.access_key: AccessKey = b""
        """By what its caller was let in, and would be again."""
        self.leads_to = ""
        """The object that its spliced websocket leads to."""
        self.inbound: Inbound | None = None
        self.demand: Demand = NO_DEMAND
        self.repeat: Repeat | None = None
        """How it stands to the same request before, where it must not be done twice."""
        self.own_ids: Collection[str] = ()
        """What of the list that it asks for is its user's."""
        self.says: dict[str, str] = {}
        """Fields at the top of its body that go up beside its client's, or instead of them."""
        self.admitted: Admitted | None = None

        self.admitted_s: float | None = None
        """Monotonic: when the reservation was durable."""
        self.is_forwarded = False
        """From here on the vendor may see it."""
        self.is_lost = False
        """The vendor had it, and its answer did not come: whatever is answered to another try, it may have been done."""
        self.observer: Observer | None = None
        self.upstream_status: int | None = None
        self.upstream_request_id: str | None = None
        self.checkpoint_nanousd = 0
        """What the last checkpoint noted for the case that we die, or can read no usage."""

        self.access_lost: Refused | None = None
        """Why its caller would not be let in any more; it may go on to its end all the same, where nothing is streamed."""
        self.on_access_lost: Callable[[Refused], None] | None = None
        self.sides: tuple[Side, Side] | None = None
        """Of its websocket, once it is open: the client's and the vendor's."""
        self.splice: Splice | None = None
        """Of its spliced websocket, once it is open; and what is done when that has ended."""
        self.splice_ended: asyncio.Future[None] | None = None
        self.tally: Tally | None = None
        """What passed on its websocket; of a spliced one, as bytes up and down."""
        self.bytes_passed: tuple[int, int] | None = None
        self.client_left = False
        self.on_client_gone: Callable[[], None] | None = None
        """What the connection calls when the client leaves, while the exchange is open."""
        self.drain_timer: Any = None
        self.head_is_out = False
        self.status = 0
        """What the client was told; 0 while it was told nothing."""
        self.first_byte_s: float | None = None
        """Monotonic: when the first byte of the vendor's answer body went down."""
        self.is_done = False
        """The client has the whole answer."""
        self.refused: Refused | None = None
        self.outcome: Outcome | None = None
        self.settled: asyncio.Future[Resolved] | None = None
        """The resolution of the reservation, from the moment it is queued."""
        self.is_deferred = False
        """It is written where to ask about its work, should that go on."""
        self.priced: Priced | None = None
        self.is_scheduled = False
        """It only schedules its work, which is written down with its reservation."""
        self.touches_scheduled = False
        """It may change or end scheduled work."""
        self.is_charged = False
        """What it has used counts against the minute's tokens."""
        self.is_estimated = False
        """What is booked is no report of the vendor's."""
        self.notes: tuple[str, ...] = ()
        """What was odd about it, as the entry has it."""
        self.cause: str | None = None
        """What went wrong on the vendor's side, in the words of the client that speaks to it."""

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
