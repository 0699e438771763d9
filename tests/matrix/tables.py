"""The tables whose product is tested (clients, vendors, and the speeches of speeches.py), which of it there is, and
the one rule for what must come of it."""

import enum
from dataclasses import dataclass, replace
from itertools import product

from metering.ledger import Outcome
from tests.matrix.speeches import SPEECHES, STREAM, WHOLE, Dialect, Speech

RETRY_AFTER_S = 7
"""What every vendor's error advises."""
NEXT_ATTEMPT_S, OPERATOR_S = 1, 30
"""What an error of ours advises: when no answer began, and when our account was refused."""


class Stage(enum.IntEnum):
    """How far an exchange has come."""

    ASKING = 0
    """The request's body is not complete."""
    CONNECTING = 1
    BEFORE_HEAD = 2
    MIDWAY = 3
    """The first half of the body is down."""
    AFTER_LAST = 4
    """All of the body is down, but not the end of its framing."""


class End(enum.Enum):
    """What a vendor does in the end, as the rule sees it."""

    REFUSES = enum.auto()
    NEVER_ACCEPTS = enum.auto()
    SAYS_NO = enum.auto()
    """An error status, whole."""
    BREAKS = enum.auto()
    """Closes, resets, or ends the framing of what is not whole."""
    STALLS = enum.auto()
    NEVER_ENDS = enum.auto()
    FAILS_INSIDE = enum.auto()
    """An `error` event in the stream."""
    COMPLETES = enum.auto()


class Act(enum.Enum):
    """What happens on the wire at the stage where a vendor stops to behave."""

    CLOSE = enum.auto()
    RESET = enum.auto()
    STALL = enum.auto()
    CUT_CHUNK = enum.auto()
    """Close within a chunk."""
    END = enum.auto()
    """The end of the framing."""
    PING = enum.auto()
    """A ping (in a JSON body: a blank), for ever."""
    ERROR_EVENT = enum.auto()


class Part(enum.IntEnum):
    """How much of an answer is sent before the act."""

    NOTHING = 0
    HALF_HEAD = 1
    HEAD = 2
    HALF_BODY = 3
    """A stream's half has its `message_start` and some content."""
    ALL_BUT_STOP = 4
    """All but the event that ends a stream."""
    BODY = 5


class Framing(enum.Enum):
    CHUNKED = enum.auto()
    LENGTH = enum.auto()


class View(enum.Enum):
    """What a client that stayed has seen."""

    CLEAN = enum.auto()
    """The vendor's bytes and a proper end."""
    CUT = enum.auto()
    """The vendor's bytes, and a connection that closed before the end."""
    REFUSED = enum.auto()
    """An error of ours, in the vendor's dialect."""
    NOTHING = enum.auto()
    """A closed connection, and not one byte."""


@dataclass(frozen=True)
class Error:
    """An error status with its body; and what a client gets to see of it."""

    status: int
    body: str = "json"
    seen_as: int | None = None
    """The status that takes its place where it is about our own account, or would lead elsewhere."""


@dataclass(frozen=True)
class Client:
    name: str
    leaves_at: Stage | None = None
    """None: stays to the end."""
    resets: bool = False
    """Leaves with an RST instead of a FIN."""
    is_slow: bool = False
    reads_on: bool = False
    """Leaves by half: sends its FIN and goes on to read."""


@dataclass(frozen=True)
class Vendor:
    name: str
    end: End
    act: Act = Act.END
    sends: Part = Part.BODY
    kinds: str = "SU"
    """For streamed and unstreamed requests, or one of them."""
    framing: Framing = Framing.CHUNKED
    is_gzip: bool = False
    is_json: bool = False
    """Answers a streamed request with a JSON body."""
    is_mute: bool = False
    """Says nothing in its body of what it has done."""
    error: Error | None = None

    @property
    def lets_reach(self) -> Stage:
        """The last stage at which a client can leave before the vendor acts."""
        if self.end is End.REFUSES:
            return Stage.ASKING
        if self.end is End.NEVER_ACCEPTS:
            return Stage.CONNECTING
        if self.error is not None or self.sends < Part.HALF_BODY:
            return Stage.BEFORE_HEAD
        if self.sends is Part.BODY and self.framing is Framing.CHUNKED:
            return Stage.AFTER_LAST
        return Stage.MIDWAY


CLIENTS = (
    Client("stays"),
    Client("reads-slowly", is_slow=True),
    Client("half-closes", Stage.BEFORE_HEAD, reads_on=True),
    Client("leaves-while-asking", Stage.ASKING),
    Client("leaves-while-asking-rst", Stage.ASKING, resets=True),
    Client("leaves-while-connecting", Stage.CONNECTING),
    Client("leaves-while-connecting-rst", Stage.CONNECTING, resets=True),
    Client("leaves-before-the-head", Stage.BEFORE_HEAD),
    Client("leaves-before-the-head-rst", Stage.BEFORE_HEAD, resets=True),
    Client("leaves-midway", Stage.MIDWAY),
    Client("leaves-midway-rst", Stage.MIDWAY, resets=True),
    Client("leaves-after-the-last", Stage.AFTER_LAST),
    Client("leaves-after-the-last-rst", Stage.AFTER_LAST, resets=True),
)
STAYS = CLIENTS[0]


def _broken(where: str, sends: Part) -> tuple[Vendor, ...]:
    return (
        Vendor(f"closes-{where}", End.BREAKS, Act.CLOSE, sends),
        Vendor(f"resets-{where}", End.BREAKS, Act.RESET, sends),
        Vendor(f"stalls-{where}", End.STALLS, Act.STALL, sends),
    )


ACCOUNT = {401: 503, 403: 503, 429: 429}
"""Statuses about our own account, and what a client is told instead."""
STATUSES = (400, 401, 403, 404, 429, 500, 503, 529)
BODIES = ("json", "chunked", "empty", "html")
ERRORS = tuple(
    Vendor(
        f"says-{status}-{body}", End.SAYS_NO, sends=Part.HEAD, error=Error(status, body, ACCOUNT.get(status))
    )
    for status, body in product(STATUSES, BODIES)
)
COMPLETES = Vendor("completes", End.COMPLETES)
VENDORS = (
    COMPLETES,
    Vendor("completes-in-gzip", End.COMPLETES, is_gzip=True),
    Vendor("completes-with-a-length", End.COMPLETES, kinds="U", framing=Framing.LENGTH),
    Vendor("answers-without-a-stream", End.COMPLETES, kinds="S", framing=Framing.LENGTH, is_json=True),
    Vendor("refuses", End.REFUSES),
    Vendor("never-accepts", End.NEVER_ACCEPTS),
    *_broken("before-the-head", Part.NOTHING),
    *_broken("in-the-head", Part.HALF_HEAD),
    *_broken("after-the-head", Part.HEAD),
    *_broken("midway", Part.HALF_BODY),
    *_broken("after-the-last", Part.BODY),
    Vendor("closes-within-a-chunk", End.BREAKS, Act.CUT_CHUNK, Part.HALF_BODY),
    Vendor("closes-before-its-length", End.BREAKS, Act.CLOSE, Part.HALF_BODY, framing=Framing.LENGTH),
    Vendor(
        "closes-before-its-length-without-a-stream",
        *(End.BREAKS, Act.CLOSE, Part.HALF_BODY),
        kinds="S",
        framing=Framing.LENGTH,
        is_json=True,
    ),
    Vendor("closes-midway-in-gzip", End.BREAKS, Act.CLOSE, Part.HALF_BODY, is_gzip=True),
    Vendor("resets-midway-in-gzip", End.BREAKS, Act.RESET, Part.HALF_BODY, is_gzip=True),
    Vendor("truncates-its-gzip", End.BREAKS, Act.END, Part.HALF_BODY, is_gzip=True),
    Vendor("ends-midway", End.BREAKS, Act.END, Part.HALF_BODY),
    Vendor("ends-without-its-stop", End.BREAKS, Act.END, Part.ALL_BUT_STOP, kinds="S"),
    Vendor("fails-inside-before-content", End.FAILS_INSIDE, Act.ERROR_EVENT, Part.HEAD, kinds="S"),
    Vendor("fails-inside-after-content", End.FAILS_INSIDE, Act.ERROR_EVENT, Part.HALF_BODY, kinds="S"),
    Vendor("never-ends", End.NEVER_ENDS, Act.PING, Part.HALF_BODY),
    Vendor("redirects", End.SAYS_NO, sends=Part.HEAD, error=Error(303, "empty", 502)),
    *ERRORS,
)


# --- which pairs there are ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    client: Client
    vendor: Vendor
    speech: Speech

    @property
    def name(self) -> str:
        return f"{self.client.name} x {self.vendor.name} x {self.speech.name}"

    @property
    def answers_stream(self) -> bool:
        """The vendor's body is events, or a list of what they would say."""
        return self.speech.is_streaming and not self.vendor.is_json

    @property
    def passes_whole_events(self) -> bool:
        """No half event goes down, and none that we asked for."""
        return self.answers_stream and (self.speech.hands_out_ids or self.speech.hidden is not None)

    @property
    def asks(self) -> int:
        """How often the vendor is asked."""
        is_lost = self.vendor.end in (End.BREAKS, End.STALLS) and self.vendor.sends < Part.HEAD
        return 2 if is_lost and self.speech.is_asked_again else 1

    @property
    def passes_whole_body(self) -> bool:
        """Nothing goes down before the end of a body, not even its head."""
        return self.speech.hands_out_ids and not self.answers_stream


TELLING = tuple(
    client
    for client in CLIENTS
    if client.name in ("stays", "leaves-before-the-head", "leaves-midway-rst", "leaves-after-the-last")
)
TELLING_WHEN_SLOW = ("completes", "closes-midway", "never-ends")
TELLING_ERRORS = ("says-429-json", "says-500-html")
FIRST_OF_VENDORS = tuple({speech.dialect.vendor: speech for speech in reversed(SPEECHES)}.values())


def is_possible(client: Client, vendor: Vendor, speech: Speech) -> bool:
    """Which pairs there are.

    1. Whoever stays meets every vendor.
    2. Whoever leaves at a stage meets the vendors that let it come so far.
    3. While it is still asking, no vendor hears of it: one stands for all.
    4. Only a vendor that never accepts keeps a client at connecting, and it lets nobody further.
    5. What an error says matters only to who reads it: whoever leaves, or reads slowly, meets each status once.
    6. Clients differ for the engine, and speeches for what they say: Anthropic's speeches meet all clients, the others
       those that tell most, and only who stays meets a vendor that is not reached.
    7. Errors are said in a vendor's dialect: the first of its speeches meets them all, the others a few.
    """
    if speech not in (STREAM, WHOLE):
        if client not in TELLING and not (client.is_slow and vendor.name in TELLING_WHEN_SLOW):
            return False
        if vendor.end in (End.REFUSES, End.NEVER_ACCEPTS) and client is not STAYS:
            return False
        if vendor.error is not None and speech not in FIRST_OF_VENDORS and vendor.name not in TELLING_ERRORS:
            return False
    if vendor.error is not None and vendor.error.body != "json" and client is not STAYS:
        return False
    if client.leaves_at is None:
        return True
    if client.leaves_at is Stage.ASKING:
        return vendor is COMPLETES
    if (client.leaves_at is Stage.CONNECTING) != (vendor.end is End.NEVER_ACCEPTS):
        return False
    return client.leaves_at <= vendor.lets_reach


CELLS = tuple(
    Cell(client, vendor, speech)
    for client, vendor, speech in product(CLIENTS, VENDORS, SPEECHES)
    if ("S" if speech.is_streaming else "U") in vendor.kinds and is_possible(client, vendor, speech)
)


# --- what must come of a pair -------------------------------------------------------------------------


class Cost(enum.Enum):
    """What is booked."""

    NOTHING = enum.auto()
    EXACT = enum.auto()
    """What the vendor reported at the end."""
    AT_START = enum.auto()
    """What the vendor had reported at the beginning, no more."""
    FLOOR = enum.auto()
    """The input estimate."""
    FROM_START = enum.auto()
    """Between what the vendor had reported at the beginning and the hold."""
    FROM_FLOOR = enum.auto()
    """Between the input estimate and the hold."""


@dataclass(frozen=True)
class Expected:
    """`outcome` None: no entry at all, and nothing was ever held."""

    outcome: Outcome | None
    is_reported: bool
    cost: Cost
    view: View | None
    """None: nobody was left to see anything."""
    status: int = 200
    error_type: str | None = None
    """Of our own error: as a body, or as an event behind the vendor's bytes."""
    kind: str = "settle"
    retry_after_s: int | None = None


def expected(cell: Cell) -> Expected:
    """The rule: what the vendor did decides; then, who was there to see it."""
    client = cell.client
    if client.leaves_at is Stage.ASKING:
        return Expected(None, is_reported=False, cost=Cost.NOTHING, view=None)
    told = _seen_to_the_end(cell)
    if cell.speech.is_free:
        told = replace(told, is_reported=True, cost=Cost.NOTHING)
    if client.leaves_at is None:
        return told
    outcome = told.outcome
    is_settled = client.leaves_at is Stage.AFTER_LAST and cell.answers_stream and cell.speech.ends_itself
    if outcome is Outcome.COMPLETED and not is_settled:
        outcome = Outcome.CLIENT_LEFT
    if cell.vendor.end is End.NEVER_ENDS:  # the drain's bound is the shorter one
        outcome = Outcome.CLIENT_LEFT
    view = View.NOTHING if client.reads_on else None
    return Expected(outcome, told.is_reported, told.cost, view, kind=told.kind)


def _seen_to_the_end(cell: Cell) -> Expected:
    vendor, dialect = cell.vendor, cell.speech.dialect
    match vendor.end:
        case End.REFUSES:
            told = (View.REFUSED, 502, dialect.unreachable, "void", NEXT_ATTEMPT_S)
            return Expected(Outcome.NOT_SENT, True, Cost.NOTHING, *told)
        case End.NEVER_ACCEPTS:
            told = (View.REFUSED, 504, dialect.timeout, "void")
            return Expected(Outcome.NOT_SENT, True, Cost.NOTHING, *told)
        case End.SAYS_NO:
            return _said_no(vendor.error, dialect)
        case End.COMPLETES:
            return Expected(Outcome.COMPLETED, True, Cost.EXACT, View.CLEAN, cell.speech.status)
        case End.FAILS_INSIDE:
            return Expected(Outcome.UPSTREAM_FAILED, False, Cost.AT_START, View.CLEAN)
        case End.BREAKS:
            return _broke(cell, Outcome.UPSTREAM_FAILED, 502, dialect.unreachable)
        case End.STALLS | End.NEVER_ENDS:
            return _broke(cell, Outcome.TIMED_OUT, 504, dialect.timeout)


def _said_no(error: Error, dialect: Dialect) -> Expected:
    if error.seen_as is None:
        return Expected(Outcome.UPSTREAM_FAILED, True, Cost.NOTHING, View.CLEAN, error.status)
    word, wait_s = {
        429: (dialect.busy, RETRY_AFTER_S),
        502: (dialect.unreachable, None),
        503: (dialect.account, OPERATOR_S),
    }[error.seen_as]
    told = (View.REFUSED, error.seen_as, word, "settle", wait_s)
    return Expected(Outcome.UPSTREAM_FAILED, True, Cost.NOTHING, *told)


def _broke(cell: Cell, outcome: Outcome, status: int, error_type: str) -> Expected:
    """The exceptions stand first: what was whole by its own rules, and by its framing."""
    vendor = cell.vendor
    if vendor.sends is Part.BODY and cell.answers_stream and cell.speech.ends_itself:
        return Expected(
            Outcome.COMPLETED, True, Cost.EXACT, View.CLEAN
        )  # the event that ends a stream ends it
    if vendor.sends < Part.HEAD:
        wait_s = NEXT_ATTEMPT_S if status == 502 else None
        return Expected(outcome, False, Cost.FLOOR, View.REFUSED, status, error_type, retry_after_s=wait_s)
    if cell.passes_whole_body:  # of what is not whole nothing has gone down
        return Expected(outcome, False, _known(cell), View.REFUSED, status, error_type)
    if vendor.act is Act.END and not cell.answers_stream:  # a body is as whole as its framing says
        return Expected(Outcome.COMPLETED, cell.speech.is_sold_whole, Cost.FROM_FLOOR, View.CLEAN)
    is_readable = not vendor.is_gzip and vendor.act is not Act.CUT_CHUNK
    may_append = (
        cell.answers_stream and cell.speech.takes_events and (is_readable or cell.passes_whole_events)
    )
    return Expected(outcome, False, _known(cell), View.CUT, error_type=error_type if may_append else None)


def _known(cell: Cell) -> Cost:
    sends, speech = cell.vendor.sends, cell.speech
    if speech.is_sold_whole:
        return Cost.EXACT
    if sends is Part.HEAD:
        return Cost.FROM_FLOOR if speech.reads_unseen else Cost.FLOOR
    if sends is Part.BODY or (sends is Part.ALL_BUT_STOP and speech.counts_before_end):
        return Cost.EXACT  # what the vendor counted last stands, though nothing ended properly
    return Cost.FROM_START if cell.answers_stream and speech.at_start_nanousd else Cost.FROM_FLOOR
