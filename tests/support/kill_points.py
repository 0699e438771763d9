"""Chosen instants of a process's death: at a suspension of a request's coroutine, or inside a commit of a kind.

In the victim, `install(path)` wraps the engine and the writer; from then on the file at `path` says what to do. It is
written by the test with `Orders`, at any time, and read again when it has changed. An order is carried out once, by
`kill -9` of the victim's process group, after a line about it was appended to a file that outlives the victim.
"""

import json
import os
import signal
import sqlite3
import time
from collections.abc import Collection, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metering.deferred import (
    CLAIM_DEFERRED,
    DELETE_DEFERRED,
    INSERT_DEFERRED,
    MOVE_DUE,
    DeferredWork,
    DeferredWorks,
)
from metering.grants import INSERT_GRANT
from metering.heartbeat import BEAT
from metering.ledger import (
    CHECKPOINT_RESERVATION,
    EXPIRE_RESERVATION,
    EXTEND_RESERVATION,
    INSERT_RESERVATION,
    RESOLVE_RESERVATION,
)
from metering.notices import INSERT_NOTICE
from metering.objects import BIND_OBJECT
from metering.outbox import CLAIM_MESSAGE, MARK_DELIVERED
from metering.store.database import Database
from metering.store.writer import GroupCommitWriter, Step, Unit
from proxy import deferral
from proxy.arrivals import Arrivals
from proxy.deferral import Deferrals
from proxy.endings import Endings
from proxy.outbox import Courier
from proxy.pipeline import Engine
from proxy.request import Request
from routes.bland_webhooks import CallReceiver
from tests.support.faulty_disk import DiskControl

ROOT = Path(__file__).parents[2]
ROOMS = ("automna_proxy", "metering", "proxy", "routes")
TAG = b"x-request-tag"
"""The header by which a request is told from others, here and in the simulated vendor's record."""
POLL = "poll"
"""Instead of a request's tag: the question to a vendor about work in the background."""
LOOK_S = 0.1
"""Between two looks for work that is due, where a poll comes quickly."""
BESIDE: Mapping[str, tuple[type, str]] = {
    "webhook": (CallReceiver, "take"),
    "list": (Arrivals, "look"),
    "ending": (Endings, "_end"),
    "claim": (Courier, "_start_due"),
    "delivery": (Courier, "_attempt"),
}
"""Work beside requests and polls that may be watched, and the method that does it: what a vendor tells of a call, its list of
what has arrived, the end of what nobody may use, and what agents are told."""
SUSPENDED, RESUMED = "suspended", "resumed"
"""The two instants of an await: its coroutine has just handed over; what it waited for has just come."""
COMMIT_OF = {
    INSERT_RESERVATION: "reserve",
    EXTEND_RESERVATION: "extend",
    CHECKPOINT_RESERVATION: "checkpoint",
    RESOLVE_RESERVATION: "settle",
    EXPIRE_RESERVATION: "expire",
    BIND_OBJECT: "bind",
    INSERT_DEFERRED: "defer",
    CLAIM_DEFERRED: "claim",
    MOVE_DUE: "keep",
    DELETE_DEFERRED: "forget",
    INSERT_GRANT: "grant",
    INSERT_NOTICE: "notice",
    CLAIM_MESSAGE: "claim_message",
    MARK_DELIVERED: "delivered",
    BEAT: "heartbeat",
}


class Orders:
    """What the victim is told, and what it told before it died."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "orders.json"
        self._told = folder / "orders.told"
        self.none()

    def none(self) -> None:
        """Live."""
        self._write({})

    def note_suspensions(self) -> None:
        """Tell of every suspension of every request."""
        self._write({"notes": True})

    def die_at(self, place: str, moment: str, *, nth: int = 1) -> None:
        """At the nth time that any request is suspended at (or resumed from) `place`."""
        self._write({"place": place, "moment": moment, "nth": nth})

    def break_commit(self, kind: str, *, nth: int = 1, **disk: int) -> None:
        """Tell the faulty disk `disk` just before the nth commit that has a unit of that kind in it."""
        self._write({"commit": kind, "nth": nth, "disk": disk})

    def told(self) -> list[dict[str, Any]]:
        """What the victim has said since the last call."""
        lines = self._told.read_text().splitlines() if self._told.exists() else []
        self._told.unlink(missing_ok=True)
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _write(self, order: Mapping[str, Any]) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(order))
        fresh.replace(self.path)


class _Victim:
    """The other side of `Orders`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = os.open(path.with_suffix(".told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._inode = 0
        self._order: dict[str, Any] = {}
        self._count = 0
        control = os.environ.get("FAULTY_DISK_CONTROL")
        self._disk = DiskControl(Path(control)) if control else None

    def order(self) -> dict[str, Any]:
        """The one that stands, read again only when it was replaced."""
        found = self._path.stat()
        inode = found.st_ino ^ found.st_mtime_ns
        if inode != self._inode:
            self._inode, self._count = inode, 0
            self._order = json.loads(self._path.read_text())
        return self._order

    def is_nth(self, order: Mapping[str, Any]) -> bool:
        self._count += 1
        return self._count == int(order["nth"])

    def tell(self, **facts: object) -> None:
        if not self._path.with_suffix(".told").exists():  # the test has taken what was told so far
            os.close(self._told)
            self._told = os.open(
                self._path.with_suffix(".told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
            )
        os.write(self._told, json.dumps(facts).encode() + b"\n")

    def die(self) -> None:
        os.killpg(0, signal.SIGKILL)
        time.sleep(60)  # the signal is on its way

    # --- awaits

    def passes(self, coroutine: "Coroutine[Any, Any, Any]", tag: str, moment: str) -> None:
        order = self.order()
        if not order:
            return
        if order.get("notes"):
            if moment == SUSPENDED:
                self.tell(tag=tag, place=place_of(coroutine))
        elif order.get("moment") == moment and order["place"] == place_of(coroutine) and self.is_nth(order):
            self.tell(died=order["place"], moment=moment, tag=tag)
            self.die()

    # --- commits

    def commits(self, units: Sequence[Unit]) -> None:
        order = self.order()
        if "commit" not in order:
            return
        kinds = {COMMIT_OF.get(sql) for unit in units for sql, _, _ in unit.steps}
        if order["commit"] in kinds and self.is_nth(order):
            assert self._disk is not None
            self.tell(died=order["commit"], disk=order["disk"])
            self._disk.set(**order["disk"])


class _Watched:
    """An awaitable that runs a coroutine and sees each of its suspensions."""

    def __init__(self, coroutine: "Coroutine[Any, Any, Any]", tag: str, victim: _Victim) -> None:
        self._coroutine = coroutine
        self._tag = tag
        self._victim = victim

    def __await__(self) -> Generator[Any, Any, Any]:
        step = self._coroutine.send
        given: Any = None
        while True:
            try:
                waited_for = step(given)
            except StopIteration as end:
                return end.value
            self._victim.passes(self._coroutine, self._tag, SUSPENDED)
            try:
                given, step = (yield waited_for), self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - whatever is thrown in is for the coroutine
                given, step = error, self._coroutine.throw
            self._victim.passes(self._coroutine, self._tag, RESUMED)


def place_of(coroutine: Any) -> str:
    """Where a suspended coroutine stands: the lines of our own rooms from the outermost await to the innermost."""
    found: list[str] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS:
                line = f"{path.relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
                found.append(line)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return " > ".join(found)


def install(
    path: Path, *, wal_pages: int | None = None, poll_s: float | None = None, beside: Collection[str] = ()
) -> None:
    """Put the watch into this process. `wal_pages`: checkpoint the log as often, to have more checkpoints to die in;
    `poll_s`: ask about work in the background as often, to have polls to die in; `beside`: what to watch of BESIDE."""
    victim = _Victim(path)
    for name in beside:
        _watch(*BESIDE[name], name, victim)
    poll, adding, claim = Deferrals._poll, DeferredWorks.adding, DeferredWorks.claim
    handle, commit, connect = Engine.handle, GroupCommitWriter._commit_together, Database.connect

    async def watched_handle(self: Engine, *arguments: Any) -> None:
        request: Request = arguments[3]
        tag = request.first.get(TAG, b"").decode()
        await _Watched(handle(self, *arguments), tag, victim)

    async def watched_poll(self: Deferrals, work: DeferredWork) -> bool:
        return bool(await _Watched(poll(self, work), POLL, victim))

    def adding_soon(self: DeferredWorks, work: DeferredWork, *, poll_in_s: float) -> Step:
        return adding(self, work, poll_in_s=poll_in_s if poll_s is None else poll_s)

    async def claim_shortly(self: DeferredWorks, work: DeferredWork, *, next_poll_in_s: float) -> bool:
        return await claim(self, work, next_poll_in_s=next_poll_in_s if poll_s is None else poll_s)

    def watched_commit(self: GroupCommitWriter, connection: sqlite3.Connection, batch: Any) -> Any:
        victim.commits([ticket.unit for ticket in batch])
        return commit(self, connection, batch)

    def connect_and_set(self: Database) -> sqlite3.Connection:
        connection = connect(self)
        if wal_pages is not None:
            connection.execute(f"PRAGMA wal_autocheckpoint = {wal_pages}")
        return connection

    if poll_s is not None:
        deferral.LOOK_EVERY_S = LOOK_S
    Deferrals._poll = watched_poll  # type: ignore[method-assign]
    DeferredWorks.adding = adding_soon  # type: ignore[method-assign]
    DeferredWorks.claim = claim_shortly  # type: ignore[method-assign]
    Engine.handle = watched_handle  # type: ignore[method-assign]
    GroupCommitWriter._commit_together = watched_commit  # type: ignore[method-assign]
    Database.connect = connect_and_set  # type: ignore[method-assign]


def _watch(owner: type, method: str, tag: str, victim: _Victim) -> None:
    real = getattr(owner, method)

    async def watched(self: Any, *arguments: Any) -> Any:
        return await _Watched(real(self, *arguments), tag, victim)

    setattr(owner, method, watched)
