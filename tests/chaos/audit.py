"""After a kill: the ledger against what the simulated vendor saw and what the clients have."""

import bisect
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from metering.ledger import decode_lines
from metering.store.database import Database
from metering.store.store import open_store
from metering.usage import SEARCHES
from metering.verify import verify
from simulators.server import Exchange
from simulators.vendor import Answered
from tests.chaos.agents import Agent, Asked
from tests.chaos.kinds import Kind
from tests.chaos.vendors import Vendors
from tests.support.kill_points import TAG
from tests.support.process import Serving

RESOLUTIONS = frozenset({"settle", "void", "expire"})
NUMBER_DIGITS = 45
"""An id of the simulated vendor ends in the number of the request that made its object."""

ROWS = """
SELECT reservations.id, label, surface, state, hold_nanousd, checkpoint_nanousd, worker_id, reservations.created_at_ms,
    reservations.lines
FROM reservations JOIN gateway_tokens ON gateway_tokens.id = reservations.token_id
WHERE reservations.user_id = ?1"""
ENTRIES = """
SELECT seq, reservation_id, kind, basis, outcome, cost_nanousd, usage, upstream_request_id, upstream_status, lines
FROM entries WHERE user_id = ?1"""
SEARCHES_SPENT = "SELECT spent, held, allowance FROM accounts WHERE owner = ?1 AND meter = 'searches'"
OWNED = "SELECT upstream_id, kind, user_id, reservation_id FROM owned_objects"


class Reserved(NamedTuple):
    id: str
    label: str
    surface: str
    state: str
    hold_nanousd: int
    checkpoint_nanousd: int
    """What an expiry books: the input estimate, until the first checkpoint."""
    worker_id: str
    created_at_ms: int
    lines: str

    @property
    def searches(self) -> int:
        """What it holds, or held, of the quota."""
        return searches_in(self.lines)


class Entry(NamedTuple):
    seq: int
    reservation_id: str
    kind: str
    basis: str
    outcome: str
    cost_nanousd: int
    usage: str | None
    upstream_request_id: str | None
    upstream_status: int | None
    lines: str

    @property
    def searches(self) -> int:
        """What it books on the quota."""
        return searches_in(self.lines)

    @property
    def searches_used(self) -> int:
        """What its usage says."""
        return sum(line["counts"].get(SEARCHES, 0) for line in orjson.loads(self.usage or b"[]"))


def searches_in(lines: str) -> int:
    """On the quota, in the lines of a row."""
    return sum(line.amount for line in decode_lines(lines) if line.meter == SEARCHES)


@dataclass(frozen=True)
class Snapshot:
    """The rows of one user as a killed server left them."""

    reserved: dict[str, Reserved]
    entries: dict[int, Entry]


def snapshot(server: Serving, user_id: str) -> Snapshot:
    """Read a copy of the dead server's files: opening the store itself would recover its log, which is for the
    restarted server to do."""
    folder = server.folder / "copy"
    folder.mkdir(exist_ok=True)
    copy = folder / server.store.name
    for suffix in ("", "-wal", "-shm", "-journal"):
        source, target = Path(f"{server.store}{suffix}"), Path(f"{copy}{suffix}")
        target.unlink(missing_ok=True)
        if source.exists() and suffix != "-shm":
            shutil.copyfile(source, target)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return _rows(lambda sql, user: connection.execute(sql, (user,)).fetchall(), user_id)


def living(server: Serving, user_id: str) -> Snapshot:
    """The rows as they are while the server runs."""
    return _rows(server.rows, user_id)


def _rows(rows: Any, user_id: str) -> Snapshot:
    reserved = [Reserved(*row) for row in rows(ROWS, user_id)]
    entries = [Entry(*row) for row in rows(ENTRIES, user_id)]
    return Snapshot({row.id: row for row in reserved}, {entry.seq: entry for entry in entries})


@dataclass
class Figures:
    """What the rounds so far have shown; plain numbers and lists, so that runs can be added up."""

    rounds: Counter[str] = field(default_factory=Counter)
    """By what was done to the server."""
    sent: Counter[str] = field(default_factory=Counter)
    """Requests by kind."""
    seen_by_vendor: int = 0
    ends_seen_by_clients: int = 0
    ends_ahead: int = 0
    """Of those: the server died before their entry was in, and an estimate is booked (not where ends wait)."""
    entries: Counter[str] = field(default_factory=Counter)
    """By kind of entry and basis."""
    exact: int = 0
    estimated: int = 0
    cut_by_kill: int = 0
    """Reservations that were held when the server died."""
    never_sent: int = 0
    """Of those: the vendor never saw the request, and its input estimate is booked all the same."""
    estimates_nanousd: list[tuple[int, int]] = field(default_factory=list)
    """(booked, true cost) of requests cut by a kill: the cost of the whole answer that the vendor had begun."""
    started_s: list[float] = field(default_factory=list)
    """From the start of the process to the first admitted request."""
    freed_s: list[float] = field(default_factory=list)
    """From the start of the process until nothing of the dead is held."""
    instants: Counter[str] = field(default_factory=Counter)
    ids_seen: int = 0
    """Of objects that a vendor keeps, in whatever clients have received; each has its one owner."""
    ids_unseen: int = 0
    """Bound, and never received by anybody."""
    deferred_exact: int = 0
    """Responses in the background, booked as they ended."""
    deferred_lost: int = 0
    """Cut before their id was bound: nobody can ask about them, and an estimate is booked."""
    strangers_refused: int = 0
    searches: int = 0
    """Counted against quotas."""
    searches_refused: int = 0
    """Requests for one that the quota had not left."""

    def as_json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)


def cost_of(kind: Kind, told: Answered) -> int:
    """What the vendor's whole answer costs; an error costs nothing."""
    return 0 if told.usage is None else kind.rates.cost_of(told.usage.counts())


class Audit:
    """One round's user, agents and vendor, after everything is resolved."""

    def __init__(self, server: Serving, vendors: Vendors, user_id: str, agents: Sequence[Agent]) -> None:
        self._user_id = user_id
        self._server = server
        self._agents = agents
        now = living(server, user_id)
        self._reserved = now.reserved
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in now.entries.values():
            self._entries[entry.reservation_id].append(entry)
        self._all_entries = now.entries
        self._buried_alive: set[str] = set()
        mine = {agent.tag for agent in agents}
        self._seen: dict[str, Exchange] = {}
        for exchange in vendors.exchanges():
            tag = exchange.request.header(TAG).decode()
            if tag.partition(":")[0] in mine:
                assert tag not in self._seen, f"{tag} was sent to the vendor twice"
                self._seen[tag] = exchange

    def check(self, before: Sequence[Snapshot], figures: Figures, *, is_settle_awaited: bool = True) -> None:
        """All claims. `before`: the rows after each kill, the first one's first. `is_settle_awaited`: the server waits for its commits longer than they ever take, so that
        who has the end of an answer has an exact entry."""
        for ident, row in self._reserved.items():
            self._check_resolved(ident, row)
        self._buried_alive = {ident for ident, row in before[0].reserved.items() if row.state == "EXPIRED"}
        for kept in before:
            self._check_nothing_was_taken_back(kept)
        figures.cut_by_kill += sum(row.state == "HELD" for row in before[0].reserved.values())
        for agent in self._agents:
            self._check_agent(agent, figures, is_settle_awaited=is_settle_awaited)
        self._check_owners(figures)
        self._check_sums()
        figures.searches += self._check_searches()
        figures.entries.update(f"{entry.kind} {entry.basis}" for entry in self._all_entries.values())

    def _check_resolved(self, ident: str, row: Reserved) -> None:
        """Once, with an estimate that its hold covers; that of an expiry is not below its checkpoint."""
        entries = self._entries[ident]
        resolutions = [entry for entry in entries if entry.kind in RESOLUTIONS]
        assert row.state != "HELD", row
        assert len(resolutions) == 1, (row, entries)
        if any(entry.kind == "adjust" for entry in entries):
            return  # an exact report came after all
        (entry,) = resolutions
        if entry.kind != "void" and entry.basis == "estimated":
            # What the vendor has counted by the end may be less than our estimate of it on the way.
            at_least = row.checkpoint_nanousd if entry.kind == "expire" else 0
            assert at_least <= entry.cost_nanousd <= row.hold_nanousd, (row, entry)

    def _check_nothing_was_taken_back(self, before: Snapshot) -> None:
        """What the dead server had committed is there as it was; what it held is booked at its last checkpoint."""
        for seq, entry in before.entries.items():
            assert self._all_entries.get(seq) == entry, ("changed or lost", entry, self._all_entries.get(seq))
        for ident, row in before.reserved.items():
            after = self._reserved[ident]
            assert after.hold_nanousd == row.hold_nanousd
            if row.state != "HELD":
                assert after == row
                continue
            (entry,) = (entry for entry in self._entries[ident] if entry.kind in RESOLUTIONS)
            if entry.kind == "expire":
                assert (entry.basis, entry.outcome) == ("estimated", "worker_died")
                assert row.checkpoint_nanousd == after.checkpoint_nanousd == entry.cost_nanousd, (row, entry)
                assert row.checkpoint_nanousd > 0 or row.hold_nanousd == 0, row

    def _check_agent(self, agent: Agent, figures: Figures, *, is_settle_awaited: bool) -> None:
        rows: dict[tuple[str, int], list[Reserved]] = defaultdict(list)
        for row in self._reserved.values():
            if row.label == agent.tag:
                rows[row.surface, row.hold_nanousd].append(row)
        alike = self._told_apart_by_time(agent, rows)
        for asked in agent.asked:
            figures.sent[asked.kind.name] += 1
            figures.ends_seen_by_clients += asked.has_end
            seen = self._seen.get(asked.tag)
            assert not (asked.is_refused and seen), (asked, "refused, and sent all the same")
            figures.searches_refused += asked.is_refused and asked.kind.is_scarce
            figures.seen_by_vendor += seen is not None
            if asked.kind.is_refused:
                assert seen is None, (asked, "refused, and sent all the same")
                assert not asked.ids, (asked, "refused, and told an id all the same")
            elif not asked.kind.is_free:
                key = (asked.kind.surface, asked.hold_nanousd)
                found = alike[asked.tag] if asked.kind.piece else rows.pop(key, [])
                self._check_one(asked, seen, found, figures, is_settle_awaited)
        for surface in {asked.kind.surface for asked in agent.asked}:
            free = rows.pop((surface, 0), [])
            self._check_free(agent, surface, free, is_settle_awaited=is_settle_awaited)
        assert not rows, ("reserved, but nobody asked", rows)

    def _told_apart_by_time(
        self, agent: Agent, rows: dict[tuple[str, int], list[Reserved]]
    ) -> dict[str, list[Reserved]]:
        """The rows of what is sold by the piece, by tag; they are taken out of `rows`. They all hold the same, but an
        agent sends one request after the other: a row is of the one whose head told its id, or of the last that was
        sent before it was written."""
        found: dict[str, list[Reserved]] = defaultdict(list)
        asked = [one for one in agent.asked if one.kind.piece and not one.kind.is_refused]
        by_id = {one.request_id: one for one in asked if one.request_id}
        for key in {(one.kind.surface, one.hold_nanousd) for one in asked}:
            same = [one for one in asked if (one.kind.surface, one.hold_nanousd) == key]
            for row in rows.pop(key, []):
                at = bisect.bisect_right([one.sent_ms for one in same], row.created_at_ms)
                assert at or row.id in by_id, ("reserved, but nobody asked", row)
                found[by_id[row.id].tag if row.id in by_id else same[at - 1].tag].append(row)
        return found

    def _check_one(
        self,
        asked: Asked,
        seen: Exchange | None,
        rows: list[Reserved],
        figures: Figures,
        is_settle_awaited: bool,
    ) -> None:
        assert len(rows) <= 1, ("twice in the ledger", asked, rows)
        assert rows or not asked.request_id or asked.is_refused, ("lost", asked)
        if not rows:
            assert seen is None, ("the vendor saw it, the ledger not", asked)
            return
        (row,) = rows
        assert asked.request_id in {"", row.id}
        assert row.searches == asked.kind.searches, (asked, row)
        (entry,) = (entry for entry in self._entries[row.id] if entry.kind in RESOLUTIONS)
        if entry.kind == "void":
            assert seen is None, ("void, but the vendor saw it", asked)
            return
        if seen is None:
            assert entry.kind == "expire", ("booked, but the vendor never saw it", asked, entry)
            figures.never_sent += 1
            return
        told = seen.reports
        assert isinstance(told, Answered)
        cost_nanousd = sum(one.cost_nanousd for one in self._entries[row.id])
        if entry.kind == "expire" and len(self._entries[row.id]) == 1:
            # Who was declared dead and went on reports late, if it has something exact to report.
            may_stand = not asked.kind.is_exact and row.id in self._buried_alive
            assert may_stand or not (asked.has_end and is_settle_awaited), (
                "the client has the end, the ledger not",
                asked,
                entry,
            )
            # An id waits for its owner and for the word of where to ask, however long these take.
            assert not (asked.kind.is_deferred and asked.ids), (
                "the client can ask about it, we do not",
                asked,
                entry,
            )
            figures.ends_ahead += asked.has_end
            figures.estimated += 1
            figures.estimates_nanousd.append((cost_nanousd, cost_of(asked.kind, told)))
            figures.deferred_lost += asked.kind.is_deferred
        elif asked.kind.is_exact:
            assert cost_nanousd == cost_of(asked.kind, told), (asked, entry, told)
            if entry.kind == "settle":
                self._check_settle(asked, entry, told)
            figures.exact += 1
            figures.deferred_exact += asked.kind.is_deferred
        else:
            assert entry.basis == "estimated", (asked, entry)
            figures.estimated += 1

    def _check_settle(self, asked: Asked, entry: Entry, told: Answered) -> None:
        assert entry.basis == "reported", entry
        names = {told.request_id or None, None} if asked.kind.is_deferred else {told.request_id or None}
        assert entry.upstream_request_id in names, (entry, told)
        counts = orjson.loads(entry.usage)[0]["counts"] if entry.usage else {}
        assert counts == (told.usage.counts() if told.usage else {}), (entry, told)

    def _check_free(
        self, agent: Agent, surface: str, rows: list[Reserved], *, is_settle_awaited: bool
    ) -> None:
        """Free requests hold no money: they are told apart by the vendor's request id, or, cut or without one, by their
        number."""
        asked = [one for one in agent.asked if one.kind.is_free and one.kind.surface == surface]
        seen = [one for one in asked if one.tag in self._seen]
        entries = [entry for row in rows for entry in self._entries[row.id]]
        assert all(entry.cost_nanousd == 0 for entry in entries), entries
        settled = [entry.upstream_request_id for entry in entries if entry.kind in {"settle", "adjust"}]
        names = {request_id_of(self._seen[one.tag]): one for one in seen}
        if None in names:
            has_end = sum(one.has_end for one in seen)
            cut, is_told = len(seen) - len(settled), is_settle_awaited and has_end > len(settled)
        else:
            assert len(set(settled)) == len(settled), "booked twice"
            assert set(settled) <= set(names), "booked, but the vendor never saw it"
            without = [one for name, one in names.items() if name not in settled]
            cut, is_told = len(without), is_settle_awaited and any(one.has_end for one in without)
        expired = sum([entry.kind for entry in self._entries[row.id]] == ["expire"] for row in rows)
        assert 0 <= cut <= expired <= cut + 1, ("lost, or held twice", agent.tag, surface, cut, entries)
        assert not is_told, ("the client has it, the ledger not", agent.tag, surface)

    # --- owners ------------------------------------------------------------------------------------------

    def _check_owners(self, figures: Figures) -> None:
        """Each id that anybody received has one owner, who asked for it; and what is bound was asked for by its
        owner, whether or not anybody received it."""
        owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for ident, _, user_id, reservation_id in self._server.rows(OWNED):
            owners[ident].append((user_id, reservation_id))
        received = {ident for agent in self._agents for asked in agent.asked for ident in asked.ids}
        for ident in received:
            assert [user_id for user_id, _ in owners[ident]] == [self._user_id], (ident, owners[ident])
        asked_by_number = {
            one.request.number: tag.partition("-")[0]
            for tag, one in self._seen.items()
            if one.request.path.endswith("/responses")
        }
        mine = {ident for ident, found in owners.items() if (self._user_id in {user for user, _ in found})}
        for ident in mine:
            ((_, reservation_id),) = owners[ident]
            assert asked_by_number[int(ident[-NUMBER_DIGITS:])] == self._user_id, (ident, "made for another")
            assert reservation_id in self._reserved, (ident, reservation_id)
        figures.ids_seen += len(received)
        figures.ids_unseen += len(mine - received)

    # --- sums --------------------------------------------------------------------------------------------

    def _check_sums(self) -> None:
        """Accounts say what the entries add up to."""
        ((spent, held),) = self._server.rows(
            "SELECT COALESCE(SUM(CASE WHEN meter = 'money' THEN spent END), 0), COALESCE(SUM(held), 0) "
            "FROM accounts WHERE owner = ?1",
            f"user:{self._user_id}",
        )
        assert held == 0
        assert spent == sum(entry.cost_nanousd for entry in self._all_entries.values())

    def _check_searches(self) -> int:
        """Each entry counts what its answer used, that of an expiry what was held, and a late report the difference;
        their sum is what is spent of the quota, and within it. That sum."""
        counted = 0
        for entry in self._all_entries.values():
            held = self._reserved[entry.reservation_id].searches
            if entry.kind == "settle":
                assert entry.searches == entry.searches_used, entry
            else:
                # A late report corrects what the expiry has counted, to what was used.
                corrects = entry.searches_used - held if entry.kind == "adjust" else 0
                assert entry.searches == (held if entry.kind == "expire" else corrects), (entry, held)
            counted += entry.searches
        accounts = self._server.rows(SEARCHES_SPENT, f"user:{self._user_id}")
        assert sum(spent for spent, _, _ in accounts) == counted
        assert all(spent <= allowance and not held for spent, held, allowance in accounts), accounts
        return counted


def request_id_of(exchange: Exchange) -> str | None:
    """The request id that the simulated vendor answered with; None of one that has none."""
    number = exchange.request.number
    if exchange.request.path.startswith("/v1beta/"):
        return None
    if exchange.request.header(b"x-api-key"):
        return f"req_011Sim{number:018d}"
    return f"req_{number:032x}"


async def assert_verified(server: Serving) -> None:
    """What `ledger verify` says, without the time that a command takes to start; and nothing is held by anyone."""
    async with open_store(Database(server.store, busy_timeout_s=10)) as store:
        report = await verify(store)
    assert report.is_clean, report.problems
    assert server.rows("SELECT * FROM accounts WHERE held <> 0") == []
    assert server.rows("SELECT * FROM deferred_work") == []
    assert server.rows("SELECT id FROM reservations WHERE state = 'HELD'") == []
