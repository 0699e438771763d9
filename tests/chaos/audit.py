"""After a kill: the ledger against what the simulated vendor saw and what the clients have."""

import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from metering.store.database import Database
from metering.store.store import open_store
from metering.verify import verify
from simulators.anthropic import Answered, AnthropicSimulator
from simulators.server import Exchange
from tests.chaos.agents import INPUT_NANOUSD, OUTPUT_NANOUSD, Agent, Asked
from tests.support.kill_points import TAG
from tests.support.process import Serving

RESOLUTIONS = frozenset({"settle", "void", "expire"})

ROWS = """
SELECT reservations.id, label, state, hold_nanousd, checkpoint_nanousd,
    checkpoint_usage IS NOT NULL, worker_id
FROM reservations JOIN gateway_tokens ON gateway_tokens.id = reservations.token_id
WHERE reservations.user_id = ?1"""
ENTRIES = """
SELECT seq, reservation_id, kind, basis, outcome, cost_nanousd, usage, upstream_request_id, upstream_status
FROM entries WHERE user_id = ?1"""


class Reserved(NamedTuple):
    id: str
    label: str
    state: str
    hold_nanousd: int
    checkpoint_nanousd: int
    """What an expiry books: the input estimate, until the first checkpoint."""
    has_checkpoint: int
    worker_id: str


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

    def as_json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)


def cost_of(told: Answered) -> int:
    """What the vendor's whole answer costs; an error costs nothing."""
    usage = told.usage
    if usage is None:
        return 0
    return usage.input_tokens * INPUT_NANOUSD + usage.output_tokens * OUTPUT_NANOUSD


class Audit:
    """One round's user, agents and vendor, after everything is resolved."""

    def __init__(
        self, server: Serving, vendor: AnthropicSimulator, user_id: str, agents: Sequence[Agent]
    ) -> None:
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
        for exchange in vendor.exchanges:
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
        self._check_sums()
        figures.entries.update(f"{entry.kind} {entry.basis}" for entry in self._all_entries.values())

    def _check_resolved(self, ident: str, row: Reserved) -> None:
        """Once, with an estimate between checkpoint and hold."""
        entries = self._entries[ident]
        resolutions = [entry for entry in entries if entry.kind in RESOLUTIONS]
        assert row.state != "HELD", row
        assert len(resolutions) == 1, (row, entries)
        if any(entry.kind == "adjust" for entry in entries):
            return  # an exact report came after all
        (entry,) = resolutions
        if entry.kind != "void" and entry.basis == "estimated":
            # What the vendor has counted may be less than our estimate of the input; never less than a checkpoint.
            at_least = row.checkpoint_nanousd if row.has_checkpoint or entry.kind == "expire" else 0
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
        rows: dict[int, list[Reserved]] = defaultdict(list)
        for row in self._reserved.values():
            if row.label == agent.tag:
                rows[row.hold_nanousd].append(row)
        for asked in agent.asked:
            figures.sent[asked.kind.name] += 1
            figures.ends_seen_by_clients += asked.has_end
            seen = self._seen.get(asked.tag)
            assert not (asked.is_refused and seen), (asked, "refused, and sent all the same")
            figures.seen_by_vendor += seen is not None
            if asked.kind.status == 402:
                assert seen is None, (asked, "refused, and sent all the same")
                assert asked.hold_nanousd not in rows
            elif not asked.kind.is_free:
                self._check_one(asked, seen, rows.pop(asked.hold_nanousd, []), figures, is_settle_awaited)
        self._check_free(agent, rows.pop(0, []), is_settle_awaited=is_settle_awaited)
        assert not rows, ("reserved, but nobody asked", rows)

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
            figures.ends_ahead += asked.has_end
            figures.estimated += 1
            figures.estimates_nanousd.append((cost_nanousd, cost_of(told)))
        elif asked.kind.is_exact:
            assert cost_nanousd == cost_of(told), (asked, entry, told)
            if entry.kind == "settle":
                self._check_settle(entry, told)
            figures.exact += 1
        else:
            assert entry.basis == "estimated", (asked, entry)
            figures.estimated += 1

    def _check_settle(self, entry: Entry, told: Answered) -> None:
        assert entry.basis == "reported", entry
        assert entry.upstream_request_id == told.request_id
        counts = orjson.loads(entry.usage)[0]["counts"] if entry.usage else {}
        assert counts == (told.usage.counts() if told.usage else {}), (entry, told)

    def _check_free(self, agent: Agent, rows: list[Reserved], *, is_settle_awaited: bool) -> None:
        """Free requests hold no money: they are told apart by the vendor's request id, or, cut, by their number."""
        asked = [one for one in agent.asked if one.kind.is_free]
        seen = {_vendor_id(self._seen[one.tag]): one for one in asked if one.tag in self._seen}
        entries = [entry for row in rows for entry in self._entries[row.id]]
        assert all(entry.cost_nanousd == 0 for entry in entries), entries
        settled = [entry.upstream_request_id for entry in entries if entry.kind in {"settle", "adjust"}]
        assert len(set(settled)) == len(settled), "booked twice"
        assert set(settled) <= set(seen), "booked, but the vendor never saw it"
        cut = [one for ident, one in seen.items() if ident not in settled]
        expired = sum([entry.kind for entry in self._entries[row.id]] == ["expire"] for row in rows)
        assert len(cut) <= expired <= len(cut) + 1, ("lost, or held twice", agent.tag, cut, entries)
        assert not (is_settle_awaited and any(one.has_end for one in cut)), (
            "the client has it, the ledger not"
        )

    def _check_sums(self) -> None:
        """Accounts say what the entries add up to."""
        ((spent, held),) = self._server.rows(
            "SELECT COALESCE(SUM(CASE WHEN meter = 'money' THEN spent END), 0), COALESCE(SUM(held), 0) "
            "FROM accounts WHERE owner = ?1",
            f"user:{self._user_id}",
        )
        assert held == 0
        assert spent == sum(entry.cost_nanousd for entry in self._all_entries.values())


def _vendor_id(exchange: Exchange) -> str:
    """The request id that the simulated vendor answers with."""
    return f"req_011Sim{exchange.request.number:018d}"


async def assert_verified(server: Serving) -> None:
    """What `ledger verify` says, without the time that a command takes to start; and nothing is held by anyone."""
    async with open_store(Database(server.store, busy_timeout_s=10)) as store:
        report = await verify(store)
    assert report.is_clean, report.problems
    assert server.rows("SELECT * FROM accounts WHERE held <> 0") == []
    assert server.rows("SELECT id FROM reservations WHERE state = 'HELD'") == []
