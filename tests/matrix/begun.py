"""What costs by the second and goes on after its answer: which cells there are of it, and the one rule for what must come of
one. What its client sees, and whether the request itself came to anything, is the rule of tables.py."""

import enum
from dataclasses import dataclass
from itertools import product

from metering.ledger import Outcome
from tests.matrix.speeches import WHOLE
from tests.matrix.tables import (
    CLIENTS,
    VENDORS,
    Cell,
    Client,
    End,
    Error,
    Expected,
    Part,
    Stage,
    Vendor,
    expected,
    is_possible,
)
from tests.matrix.works import WORKS, Work

BEGUN_VENDORS = (
    *VENDORS,
    Vendor("completes-saying-nothing", End.COMPLETES, is_mute=True),
    Vendor("says-408-json", End.SAYS_NO, sends=Part.HEAD, error=Error(408)),
)
CLIENT_ERROR, REQUEST_TIMEOUT, SERVER_ERROR = 400, 408, 500


@dataclass(frozen=True)
class BegunCell(Cell):
    """`is_made`: whether the vendor has begun what it was asked for, whatever it says of it."""

    work: Work
    is_made: bool

    @property
    def name(self) -> str:
        return f"{super().name} x {'made' if self.is_made else 'not made'}"


def _may_be_made(client: Client, vendor: Vendor) -> tuple[bool, ...]:
    """A vendor that hears nothing, or says that a request is wrong, begins nothing; one that says what it has begun, and to the
    end, has begun it. Of all others nobody knows."""
    is_heard = client.leaves_at is not Stage.ASKING and vendor.end not in (End.REFUSES, End.NEVER_ACCEPTS)
    if not is_heard or _is_refusal(vendor):
        return (False,)
    return (True,) if _tells(vendor) else (True, False)


def _is_refusal(vendor: Vendor) -> bool:
    status = 0 if vendor.error is None else vendor.error.status
    return CLIENT_ERROR <= status < SERVER_ERROR and status != REQUEST_TIMEOUT


def _tells(vendor: Vendor) -> bool:
    return vendor.end is End.COMPLETES and not vendor.is_mute


CELLS = tuple(
    BegunCell(client, vendor, work.speech, work, is_made)
    for client, vendor, work in product(CLIENTS, BEGUN_VENDORS, WORKS)
    if "U" in vendor.kinds and is_possible(client, vendor, WHOLE)  # which meets them all
    for is_made in _may_be_made(client, vendor)
)


# --- what must come of a pair -------------------------------------------------------------------------


class Fate(enum.Enum):
    """What becomes of the work."""

    NONE = enum.auto()
    """It is known that there is none."""
    NOT_FOUND = enum.auto()
    """There may be some: it is looked for until it is sure that there is none."""
    FOUND = enum.auto()
    """By its tag, and ended: nobody knows of it."""
    LEFT = enum.auto()
    """Its id came, but its client was gone: ended."""
    TOLD = enum.auto()
    """It goes on until its user, or itself, ends it."""


@dataclass(frozen=True)
class Begun:
    """`entry`: of the request, once all is over; None: no entry at all. `line`: of its canonical line, when it was answered."""

    seen: Expected
    fate: Fate
    line: Outcome
    entry: Outcome | None
    kind: str = "settle"
    notes: tuple[str, ...] = ()
    looks: int = 0
    """By the tag."""
    ends: int = 0
    """How often the vendor is told to end it."""


LOOKS_MAX = 3
"""What is not found so often is not there."""


def begun(cell: BegunCell) -> Begun:
    """The rule: whether the vendor may have begun it decides; then, whether it has; then, whether anybody knows of it."""
    seen = expected(cell)
    fate = _fate(cell, seen)
    match fate:
        case Fate.NONE:
            return Begun(seen, fate, seen.outcome or Outcome.CLIENT_LEFT, seen.outcome, seen.kind)
        case Fate.NOT_FOUND:
            booked = Outcome.UPSTREAM_FAILED
            return Begun(
                seen, fate, Outcome.DEFERRED, booked, notes=("not_found_at_vendor",), looks=LOOKS_MAX
            )
        case Fate.FOUND:
            return Begun(seen, fate, Outcome.DEFERRED, Outcome.COMPLETED, looks=1, ends=1)
        case Fate.LEFT:
            return Begun(seen, fate, Outcome.DEFERRED, Outcome.COMPLETED, ends=1)
        case Fate.TOLD:
            return Begun(seen, fate, Outcome.DEFERRED, Outcome.COMPLETED)


def _fate(cell: BegunCell, seen: Expected) -> Fate:
    if _is_refusal(cell.vendor) or seen.outcome in (None, Outcome.NOT_SENT):
        return Fate.NONE
    if not cell.is_made:
        return Fate.NOT_FOUND
    if not _tells(cell.vendor):
        return Fate.FOUND
    return Fate.TOLD if cell.client.leaves_at is None else Fate.LEFT
