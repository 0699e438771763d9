"""`automna-proxy demo`: the real server before simulated vendors, real clients, and the ledger they leave.

Nothing of the caller's environment takes part: no key, no proxy, no setting. Every scene checks what it
shows, so that `demo --once` is a test too.
"""

import importlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from automna_proxy.demo_apis import CHAT, SEARCH
from automna_proxy.demo_browser import Browsing, BrowsingError, Visit
from automna_proxy.demo_calls import Dial, DialError, dialled, status_of
from automna_proxy.demo_clients import AnthropicSdk, Client, Curl, Request, Seen, StandardLibrary
from automna_proxy.demo_ledger import cost_of, counts_of, settled_entries, table_of
from automna_proxy.demo_machine import OwnMachine
from automna_proxy.demo_page import Page
from automna_proxy.demo_scenes import (
    ADA,
    BROWSER_METER,
    CALL_METER,
    EMAIL_NANOUSD,
    EMAILS_METER,
    FLASH,
    GPT,
    PLAN_OF,
    SCENES,
    SEARCH_NANOUSD,
    SEARCHES_METER,
    SONNET,
    Ask,
)
from automna_proxy.demo_stage import OK, Stage, StageError, staged
from automna_proxy.terminal import PROGRAM
from metering.errors import Refused
from metering.money import credits_of, usd
from metering.prices import PriceTable
from metering.reports import Entry
from metering.usage import (
    BROWSER_SECONDS,
    CACHE_READ,
    CACHE_WRITE_5M,
    CALL_SECONDS,
    INPUT,
    OUTPUT,
    RECIPIENTS,
    SEARCHES,
    WEB_SEARCHES,
)
from simulators.agentmail import Sent
from simulators.behaviour import Behaviour
from simulators.browserbase import Billed, Session
from simulators.script import Gate
from simulators.vendor import Answered

FAILED, INTERRUPTED = 1, 130
WATCH_S = 0.5
EVENTS_BEFORE_TEXT = 3
"""`message_start`, `content_block_start`, `ping`."""
HOSTS: Mapping[str, str] = {
    "anthropic": "api.anthropic.com",
    "openai": "api.openai.com",
    "gemini": "generativelanguage.googleapis.com",
    "brave": "api.search.brave.com",
    "agentmail": "api.agentmail.to",
    "browserbase": "api.browserbase.com",
    "bland": "api.bland.ai",
    "fly": "api.machines.dev",
}
OWN_ENDPOINTS = (
    "/health",
    "/readyz",
    "/metrics",
    "/api/user/usage",
    "/api/user/limits",
    "/api/user/requests",
)
UNIT_NAMES: Mapping[str, str] = {
    INPUT: "input",
    CACHE_READ: "read from cache",
    CACHE_WRITE_5M: "written to cache",
    OUTPUT: "output",
    WEB_SEARCHES: "searches",
    SEARCHES: "searches",
    RECIPIENTS: "e-mails",
    BROWSER_SECONDS: "browser seconds",
    CALL_SECONDS: "call seconds",
}
"""How people call what is counted, in the order of the table."""
LIMIT_NAMES: Mapping[str, str] = {"emails": "e-mails"}
"""How people call what is limited, where `/api/user/limits` has another word."""
LATER = frozenset({"browserbase", "bland", "fly"})
"""Vendors whose bill comes after their answer, or not by request: they are checked by what they bill and have."""
SINGULAR: Mapping[str, str] = {
    "searches": "search",
    "credits": "credit",
    "e-mails": "e-mail",
    "mails": "mail",
    "browsers": "browser",
    "calls": "call",
}


def run(*, once: bool) -> int:
    """Play the demo; then, unless `once`, stay up until Ctrl-C. The exit status: 0 when all was as promised."""
    page = Page()
    try:
        with _terminable(), staged() as stage:
            return _play(page, stage, once=once)
    except KeyboardInterrupt:
        page.say("Interrupted.")
        return INTERRUPTED


def _play(page: Page, stage: Stage, *, once: bool) -> int:
    demo = _Demo(page, stage)
    try:
        demo.play()
        if not demo.failures and not once:
            _stay(page, stage, demo.tokens[ADA])
        demo.claim("the server stopped cleanly", stage.stop_server() == 0, is_quiet=True)
    except (StageError, BrowsingError, DialError, Refused, subprocess.SubprocessError) as error:
        demo.failures.append(str(error))
    if not demo.failures:
        return 0
    stage.is_kept = True
    page.say()
    page.say("This is not as it should be:", style="bold red")
    for failure in demo.failures:
        page.fact("FAILED", failure, style="red")
    page.verbatim(f"The server's log is {stage.log}. It ends with:")
    for line in stage.last_log_lines():
        page.verbatim(line, style="dim")
    return FAILED


@dataclass(frozen=True, slots=True)
class _Played:
    """One request: what was asked, seen, answered by the vendor and booked. `reached`: requests that a vendor got.

    `answers`: all that the vendor gave, in order; `sent`: the mails that went out.
    """

    ask: Ask
    seen: Seen
    reached: int
    answers: Sequence[Answered]
    entry: Entry | None
    sent: Sequence[Sent]

    @property
    def answer(self) -> Answered | None:
        """The one that came through: those before it were lost."""
        return self.answers[-1] if self.answers else None

    @property
    def lost(self) -> int:
        return len(self.answers[:-1])

    @property
    def counts(self) -> dict[str, int]:
        """All that the vendor reported; it reports nothing for what it only tells once more."""
        total: Counter[str] = Counter()
        for answer in self.answers:
            total.update({} if answer.usage is None else answer.usage.counts())
        return dict(total)


class _Demo:
    """The scenes in order, and what did not hold."""

    def __init__(self, page: Page, stage: Stage) -> None:
        self.failures: list[str] = []
        self.tokens: dict[str, str] = {}
        """Gateway tokens by user."""
        self._page = page
        self._stage = stage
        self._prices = PriceTable.load()
        self._played: list[_Played] = []
        self._visits = 0
        self._dials = 0
        self._clients: dict[str, Client] = {}
        self._object_id = ""
        """Of the last answer that had one."""

    def claim(self, claim: str, holds: bool, *, found: object = "", is_quiet: bool = False) -> None:
        """Say that something holds, or note that it does not. Quiet: only the latter."""
        if not holds:
            self.failures.append(claim + (f" (found {found})" if found != "" else ""))
        if not is_quiet:
            self._page.fact("ok" if holds else "FAILED", claim, style="" if holds else "red")

    def play(self) -> None:
        """Raises StageError when it cannot go on."""
        self._open()
        self._welcome(ADA)
        for scene in SCENES:
            self._page.heading(scene.title)
            for ask in scene.asks:
                if ask.user not in self.tokens:
                    self._welcome(ask.user)
                self._perform(ask)
            for visit in scene.visits:
                self._drive(visit)
            for dial in scene.dials:
                self._dial(dial)
        self._show_ledger()
        self._check()
        self._page.heading("A machine of one's own")
        for promise in OwnMachine(self._page, self._stage, ADA, self._command).play():
            self.claim(promise.claim, promise.holds, found=promise.found)

    # --- the stage ---------------------------------------------------------------------------------

    def _open(self) -> None:
        page, stage = self._page, self._stage
        page.console.print()
        page.console.print("automna-proxy, demonstrated", style="bold")
        page.say("A real server before simulated vendors; nothing of your environment is used.")
        page.heading("The proxy")
        sdk = _imported("anthropic")  # while the server starts
        stage.wait_until_ready()
        for name, vendor in stage.vendors.items():
            page.fact("vendor", f"{vendor.url}  answers as {HOSTS[name]} does")
        page.fact("proxy", stage.url)
        page.fact("store", str(stage.database.path))
        self._find_clients(sdk)

    def _find_clients(self, sdk: Any) -> None:
        """Curl and the SDK, or what stands in for them."""
        program = shutil.which("curl", path=self._stage.environment.get("PATH"))
        if program is None:
            self._page.fact("note", "curl is not installed: Python's standard library asks instead")
        curl = Curl(program, self._stage.url, self._stage.environment) if program else None
        by_hand: Client = curl or StandardLibrary(self._stage.url)
        if sdk is None:
            self._page.fact("note", "the anthropic SDK is not installed: pip install 'automna-proxy[demo]'")
        by_sdk = by_hand if sdk is None else AnthropicSdk(sdk, self._stage.url)
        self._clients = {"curl": by_hand, "sdk": by_sdk}

    def _welcome(self, user: str) -> None:
        """Make a user and a gateway token, with the commands of an operator."""
        if not self.tokens:
            self._page.heading("A user and a gateway token")
        plan = PLAN_OF[user]
        self._command("user", "add", user, "--plan", plan)
        self.tokens[user] = self._command("token", "create", user, "--label", "demo")

    def _command(self, *words: str) -> str:
        """Show a command, run it, show and return its output. Raises StageError when it fails."""
        command = f"automna-proxy {' '.join(words)}"
        self._page.paste(f"$ {command}")
        said = self._stage.command(words)
        if said.status:
            raise StageError(f"{command}: {said.complaint or said.output}")
        for line in said.complaint.splitlines():  # a command's progress
            self._page.say(line)
        self._page.say(said.output)
        return said.output

    # --- a scene -----------------------------------------------------------------------------------

    def _perform(self, ask: Ask) -> None:
        page, vendor = self._page, self._stage.vendors[ask.api.provider]
        gate = Gate()
        if ask.behaviour is not None:
            vendor.next(_gated(ask.behaviour, ask.leaves_after, gate))
        client = self._clients[ask.client]
        for line in ask.shown if client.name == ask.client else ():
            page.paste(line)
        page.fact(ask.user, ask.question)
        answered_before, reached_before = len(vendor.answers_of(Answered)), self._reached()
        sent_before = len(self._stage.sent)
        entries_before = {entry.seq for entry in settled_entries(self._stage.database)}
        seen, came_after_s = self._ask(client, ask)
        gate.open()
        self._object_id = seen.object_id or self._object_id
        answers = vendor.answers_of(Answered)[answered_before:]
        booked = [e for e in settled_entries(self._stage.database) if e.seq not in entries_before]
        entry = next(iter(booked), None)
        reached = self._reached() - reached_before
        played = _Played(ask, seen, reached, answers, entry, self._stage.sent[sent_before:])
        self._played.append(played)
        for line in _done_in_words(played):
            page.fact("vendor", line)
        page.fact(client.name, _seen_in_words(ask, seen, came_after_s), style="yellow" if seen.error else "")
        page.fact("ledger", "nothing held, nothing booked" if entry is None else _booked_in_words(entry))
        for problem in _problems(played, len(booked), self._prices):
            self.claim(f"{ask.question!r}: {problem}", False)
        for name, used in ask.used.items():
            self._show_limit(ask, name, used)

    def _drive(self, visit: Visit) -> None:
        """Send a browser somewhere; its time is held while it runs, and booked when it has ended."""
        page, stage = self._page, self._stage
        page.paste(
            '>>> session = Browserbase(base_url=URL + "/api/browserbase", api_key=TOKEN).sessions.create()'
        )
        page.paste(">>> browser = playwright.chromium.connect_over_cdp(session.connect_url)")
        entries_before = {entry.seq for entry in settled_entries(stage.database)}
        browsing = Browsing(stage.url, self.tokens[visit.user])
        session = browsing.create()
        page.fact(visit.user, f"a browser, please, for {visit.url}")
        page.fact("vendor", f"runs {session['id']}")
        with browsing.connected(session) as socket:
            visited = browsing.visit(socket, session, visit.url)
            page.fact("browser", f"{visited.title}, {visited.screenshot_bytes:,} bytes of screenshot")
            page.fact("over", visited.address)
            running = stage.meter(BROWSER_METER, self.tokens[visit.user])
            page.fact("limits", f"while it runs: {running['held']:,} seconds held, {running['used']:,} used")
        entries = [one for one in settled_entries(stage.database) if one.seq not in entries_before]
        self._visits += 1
        booked = [entry for entry in entries if entry.usage]
        for entry in booked:
            page.fact("ledger", _booked_in_words(entry))
        ended = stage.meter(BROWSER_METER, self.tokens[visit.user])
        page.fact("limits", f"when it has ended: {ended['held']:,} seconds held, {ended['used']:,} used")
        billed = [one.seconds for one in map(_billed, stage.browsers[-1:]) if one is not None]
        counted = [counts_of(entry).get(BROWSER_SECONDS) for entry in booked]
        self.claim(
            f"{visit.url}: it was there, and the vendor's {sum(billed)} seconds are booked once",
            visited.title == visit.title
            and running["held"] > 0
            and ended["held"] == 0
            and len(billed) == 1
            and billed == counted == [ended["used"] - running["used"]],
            found=(visited, running, ended, billed, counted),
            is_quiet=True,
        )

    def _dial(self, dial: Dial) -> None:
        """Call somebody; the vendor tells of the end, and is asked what it cost."""
        page, stage, token = self._page, self._stage, self.tokens[dial.user]
        self._command("phone", "assign", dial.user, dial.own)
        page.paste('$ curl $URL/api/user/call -H "authorization: Bearer $TOKEN" \\')
        page.paste("""    -H "content-type: application/json" -d '{"to": "+12025550100", "task": ...}'""")
        entries_before = {entry.seq for entry in settled_entries(stage.database)}
        page.fact(dial.user, dial.task)
        told = dialled(stage.url, token, dial)
        page.fact("call", f"{told['status']}: from {told['from']} to {told['to']}")
        running = stage.meter(CALL_METER, token)
        page.fact("limits", f"while it runs: {running['held']:,} seconds held, {running['used']:,} used")
        booked = [one for one in settled_entries(stage.database) if one.seq not in entries_before]
        self._dials += 1
        ended = status_of(stage.url, token, told["call_id"])
        page.fact("call", f"{ended['status']} after {ended['duration_seconds']} seconds: {ended['summary']}")
        for entry in booked:
            page.fact("ledger", _booked_in_words(entry))
        meter = stage.meter(CALL_METER, token)
        page.fact("limits", f"when it has ended: {meter['held']:,} seconds held, {meter['used']:,} used")
        billed = stage.calls[-1:]
        wanted = [(one.seconds, one.price_nanousd) for one in billed]
        found = [(counts_of(entry).get(CALL_SECONDS), _cost(entry)) for entry in booked]
        self.claim(
            f"{dial.to}: called, and the vendor's {sum(one.seconds for one in billed)} seconds and price are booked once",
            len(wanted) == 1 and wanted == found and running["held"] > 0 and meter["held"] == 0,
            found=(wanted, found, running, meter),
            is_quiet=True,
        )

    def _reached(self) -> int:
        """Requests that any vendor got so far."""
        return sum(vendor.requests_total for vendor in self._stage.vendors.values())

    def _show_limit(self, ask: Ask, name: str, used: int) -> None:
        """Where the user stands, which must be so many of what the plan includes."""
        meter = self._stage.meter(name, self.tokens[ask.user])
        unit = LIMIT_NAMES.get(meter["unit"], meter["unit"])
        self._page.fact("limits", f"{meter['used']:,} of {meter['limit']:,} {unit}")
        limit = getattr(self._stage.plan(PLAN_OF[ask.user]), name)
        wanted = {"limit": limit, "used": used, "held": 0, "left": limit - used}
        found = {key: meter[key] for key in wanted}
        if found != wanted:
            self.claim(f"{ask.question!r}: expected {name} {wanted}, found {found}", False)

    def _ask(self, client: Client, ask: Ask) -> tuple[Seen, list[float]]:
        """What the client saw, and after how many seconds each piece of the text."""
        stream = self._page.stream(ask.api.speaker)
        started_s = time.monotonic()
        came_after_s: list[float] = []

        def on_text(piece: str) -> bool:
            came_after_s.append(time.monotonic() - started_s)
            stream.write(piece)
            return len(came_after_s) != ask.leaves_after

        request = Request(ask.api, ask.path(self._object_id), ask.body)
        try:
            return client.ask(request, self.tokens[ask.user], on_text), came_after_s
        finally:
            stream.end()

    # --- the end -----------------------------------------------------------------------------------

    def _show_ledger(self) -> None:
        self._page.heading("The ledger")
        self._page.say()
        entries = settled_entries(self._stage.database)
        self._page.table(table_of(entries, self._page.console))
        self._page.say()
        self._command("ledger", "verify")

    def _check(self) -> None:
        self._page.heading("What was promised")
        stage, vendors = self._stage, self._stage.vendors.values()
        entries = settled_entries(stage.database)
        browsed = [entry for entry in entries if entry.surface == "browserbase"]
        called = [entry for entry in entries if entry.surface == "call"]
        entries = [entry for entry in entries if entry not in (*browsed, *called)]
        told = [
            (played.ask.api.surface, played.answer.request_id)
            for played in self._played
            if played.answer is not None
        ]
        lost = sum(played.lost for played in self._played)
        answers_total = sum(
            len(vendor.answers_of(Answered)) for name, vendor in stage.vendors.items() if name not in LATER
        )
        answers = f"{answers_total - lost} answers of the vendors" + (f" (and {lost} lost)" if lost else "")
        self.claim("every count is what the vendor reported, every cost exact", not self.failures)
        upstream_ids = [(entry.surface, entry.upstream_request_id or "") for entry in entries if entry.usage]
        self.claim(
            f"{answers}, {len(upstream_ids)} entries in the ledger: each exactly once",
            upstream_ids == told and len(told) + lost == answers_total,
            found=upstream_ids,
        )
        free = [played.entry for played in self._played if played.ask.is_free]
        self.claim(
            f"{len(free)} read of what was paid before: an entry that costs nothing",
            [entry for entry in entries if not entry.usage] == free and not any(map(_cost, free)),
        )
        unasked = [played.seen for played in self._played if played.ask.api is CHAT]
        self.claim(
            "who did not ask OpenAI for the usage saw none of it",
            not any(seen.tells_usage for seen in unasked),
        )
        searches = [played.entry for played in self._played if played.ask.api is SEARCH and played.answer]
        self.claim(
            f"{_amount(len(searches), 'searches')} at USD {usd(SEARCH_NANOUSD)}, counted alike by plan and ledger",
            all(_cost(entry) == SEARCH_NANOUSD for entry in searches)
            and all(
                self._used(SEARCHES_METER, user) == _counted(SEARCHES, user, entries) for user in self.tokens
            ),
            found=[_cost(entry) for entry in searches],
        )
        self._check_mails(entries)
        if self._visits:
            self._check_browsers(browsed)
        if self._dials:
            self._check_calls(called)
        refused = [played for played in self._played if played.ask.behaviour is None]
        self.claim(
            f"{len(refused)} refusals: the vendor was not asked, nothing is booked",
            not any(played.reached or played.answer or played.entry for played in refused),
        )
        requests = [request for vendor in vendors for request in vendor.requests]
        sent = b"".join(
            repr((request.target, request.headers)).encode() + request.body for request in requests
        )
        self.claim(
            "no vendor ever saw a gateway token",
            not any(token.encode() in sent for token in self.tokens.values()),
        )
        statuses = {path: stage.status_of(path, self.tokens[ADA]) for path in OWN_ENDPOINTS}
        self.claim(
            f"{' '.join(OWN_ENDPOINTS)} answer",
            set(statuses.values()) == {OK},
            found=statuses,
        )

    def _check_calls(self, called: Sequence[Entry]) -> None:
        billed = self._stage.calls
        costs = [_cost(entry) for entry in called if entry.usage]
        self.claim(
            f"{_amount(self._dials, 'calls')}: dialled once, over, and booked at the vendor's own price",
            len(billed) == self._dials and costs == [one.price_nanousd for one in billed],
            found=(billed, costs),
        )

    def _check_browsers(self, browsed: Sequence[Entry]) -> None:
        billed = [one for one in map(_billed, self._stage.browsers) if one is not None]
        costs = [_cost(entry) for entry in browsed if entry.usage]
        seconds = sum(one.seconds for one in billed)
        self.claim(
            f"{_amount(self._visits, 'browsers')}: none runs any more, and {seconds} seconds at USD 0.12 an hour are booked",
            len(billed) == len(self._stage.browsers) == self._visits == len(costs)
            and not any(session.is_live for session in self._stage.browsers)
            and sum(costs)
            == sum(
                cost_of(
                    self._prices,
                    "browserbase",
                    "session",
                    {BROWSER_SECONDS: one.seconds},
                    at_ms=browsed[0].at_ms,
                )
                for one in billed
            ),
            found=(billed, costs),
        )

    def _check_mails(self, entries: Sequence[Entry]) -> None:
        mails = [played for played in self._played if played.ask.sends]
        costs = [_cost(played.entry) for played in mails]
        counted = {
            user: (
                self._used(EMAILS_METER, user),
                _counted(RECIPIENTS, user, entries),
                sum(len(sent.recipients) for each in mails if each.ask.user == user for sent in each.sent),
            )
            for user in self.tokens
        }
        self.claim(
            f"{_amount(len(mails), 'mails')} at USD {usd(EMAIL_NANOUSD)} a recipient, each sent exactly once: "
            f"plan, ledger and vendor count the same {sum(len(each.ask.sends) for each in mails)} recipients",
            self._stage.sent == [sent for each in mails for sent in each.sent]
            and all(len(each.sent) == 1 for each in mails)
            and costs == [len(each.ask.sends) * EMAIL_NANOUSD for each in mails]
            and all(len(set(counts)) == 1 for counts in counted.values()),
            found=(counted, costs),
        )

    def _used(self, meter: str, user: str) -> int:
        used: int = self._stage.meter(meter, self.tokens[user])["used"]
        return used


def _gated(behaviour: Behaviour, leaves_after: int | None, gate: Gate) -> Behaviour:
    """The vendor says no more than the client waits for, until that has left."""
    if leaves_after is None:
        return behaviour
    return replace(behaviour, stalls_after=EVENTS_BEFORE_TEXT + leaves_after, gate=gate)


def _problems(played: _Played, booked: int, prices: PriceTable) -> Iterator[str]:
    """What is not as the scene says."""
    ask, seen, entry = played.ask, played.seen, played.entry
    if seen.status != ask.status:
        yield f"expected status {ask.status}, the client saw {seen.status} {seen.error}"
    if ask.error not in seen.error or bool(ask.error) != bool(seen.error):
        yield f"expected the error {ask.error!r}, the client saw {seen.error!r}"
    if seen.is_whole != (ask.leaves_after is None):
        yield f"the answer ended otherwise than expected: {seen}"
    mails = [(ask.sends, ask.body["subject"], ask.body["text"])] if ask.sends and ask.body else []
    sent = [(each.recipients, each.content.subject, each.content.text) for each in played.sent]
    if sent != mails:
        yield f"expected the mails {mails}, the vendor sent {sent}"
    if ask.behaviour is None:
        if played.reached or played.answers or booked:
            yield "refused, and yet forwarded or booked"
        return
    if ask.is_free:
        if played.answers or booked != 1 or _cost(entry):
            yield f"expected one entry that costs nothing, found {booked} entries"
        return
    answer = played.answer
    if answer is None or played.lost != ask.lost or entry is None or booked != 1:
        wanted, found = 1 + ask.lost, len(played.answers)
        yield f"expected one entry for {wanted} answers, found {booked} entries for {found} answers"
        return
    yield from _entry_problems(played, answer, entry, prices)


def _entry_problems(played: _Played, answer: Answered, entry: Entry, prices: PriceTable) -> Iterator[str]:
    ask, seen, counts = played.ask, played.seen, played.counts
    text = ask.text(answer)
    expected: Mapping[str, tuple[object, object]] = {
        "text": (seen.text, text if ask.leaves_after is None else text[: len(seen.text)]),
        "request id": (entry.request_id, seen.request_id),
        "upstream request id": (entry.upstream_request_id or "", answer.request_id),
        "user": (entry.user_id, ask.user),
        "outcome": (entry.outcome, "completed" if ask.leaves_after is None else "client_left"),
        "basis": (entry.basis, "reported"),
        "counts": (counts_of(entry), counts),
        "cost": (
            entry.cost_nanousd,
            cost_of(prices, ask.api.provider, answer.model or ask.api.product, counts, at_ms=entry.at_ms),
        ),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            yield f"expected the {name} {wanted!r}, found {found!r}"


def _billed(session: Session) -> Billed | None:
    """What the vendor bills of one that has ended."""
    return session.billed()


def _cost(entry: Entry | None) -> int:
    return 0 if entry is None else entry.cost_nanousd


def _counted(unit: str, user: str, entries: Sequence[Entry]) -> int:
    """How many of a unit that plans count; what a model searches by itself is another unit."""
    return sum(counts_of(entry).get(unit, 0) for entry in entries if entry.user_id == user)


def _done_in_words(played: _Played) -> Iterator[str]:
    """What the vendor did that no answer shows."""
    for sent in played.sent:
        yield f"sent it to {', '.join(sent.recipients)}: {sent.content.text}"
    if played.lost:
        yield f"answered {len(played.answers)} times, and only the last answer came through"


def _seen_in_words(ask: Ask, seen: Seen, came_after_s: Sequence[float]) -> str:
    if seen.error:
        return f"{seen.status} {seen.error}"
    if not seen.is_whole:
        return f"{seen.status}, then the client left after {len(came_after_s)} pieces"
    pieces = ""
    if ask.is_streaming and came_after_s:
        first_s, last_s = came_after_s[0], came_after_s[-1]
        pieces = f", {len(came_after_s)} pieces from {first_s:.2f} s to {last_s:.2f} s"
    return f"{seen.status}{pieces}, {seen.request_id}"


def _booked_in_words(entry: Entry) -> str:
    if not entry.usage:
        return "nothing to pay for: an entry of nothing"
    counts = counts_of(entry)
    used = ", ".join(_amount(counts[unit], name) for unit, name in UNIT_NAMES.items() if unit in counts)
    credits_used = _amount(credits_of(entry.cost_nanousd), "credits")
    ended = "" if entry.outcome == "completed" else f"{entry.outcome}, {entry.basis}: ".replace("_", " ")
    return f"{ended}{used} = ${usd(entry.cost_nanousd)}, {credits_used}"


def _amount(count: int, name: str) -> str:
    return f"{count:,} {SINGULAR.get(name, name) if count == 1 else name}"


def _imported(name: str) -> Any:
    """A library, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# --- staying up ---------------------------------------------------------------------------------------


def _stay(page: Page, stage: Stage, gateway_token: str) -> None:
    """Say what can be tried, and wait for Ctrl-C. Raises StageError when the server ends by itself."""
    try:
        page.heading("Your turn")
        page.say("Paste these into another terminal; Ctrl-C here ends the demo.")
        page.say()
        for line in _paste_lines(stage, gateway_token):
            page.paste(line)
        page.say()
        while stage.is_serving:
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        page.say()
        page.say("Stopping.")
        return
    raise StageError("the server ended by itself")


def _paste_lines(stage: Stage, gateway_token: str) -> list[str]:
    command = _own_command()
    return [
        f"export URL={stage.url} NO_PROXY=127.0.0.1",
        f"export TOKEN={gateway_token}",
        "",
        'curl -N $URL/api/llm/v1/messages -H "x-api-key: $TOKEN" \\',
        '  -H "content-type: application/json" \\',
        f"""  -d '{{"model": "{SONNET}", "max_tokens": 200, "stream": true,""",
        """       "messages": [{"role": "user", "content": "Say something."}]}'""",
        'curl $URL/api/openai/v1/chat/completions -H "authorization: Bearer $TOKEN" \\',
        '  -H "content-type: application/json" \\',
        f"""  -d '{{"model": "{GPT}", "messages": [{{"role": "user", "content": "Say something."}}]}}'""",
        f'curl -N "$URL/api/gemini/v1beta/models/{FLASH}:streamGenerateContent?alt=sse" \\',
        '  -H "x-goog-api-key: $TOKEN" -H "content-type: application/json" \\',
        """  -d '{"contents": [{"parts": [{"text": "Say something."}]}]}'""",
        'curl "$URL/api/brave/res/v1/web/search?q=something" -H "x-subscription-token: $TOKEN"',
        'curl $URL/api/user/email/send -H "authorization: Bearer $TOKEN" \\',
        '  -H "content-type: application/json" \\',
        """  -d '{"to": "ann@example.com", "subject": "Hello", "text": "Hello, Ann."}'""",
        'curl $URL/api/llm/v1/models -H "x-api-key: $TOKEN"',
        'curl $URL/api/user/usage -H "authorization: Bearer $TOKEN"',
        'curl $URL/api/user/limits -H "authorization: Bearer $TOKEN"',
        'curl "$URL/api/user/requests?limit=5" -H "authorization: Bearer $TOKEN"',
        "curl $URL/metrics",
        "curl $URL/health",
        "",
        f"export DATABASE_URL=sqlite:///{stage.database.path}",
        f"{command} ledger tail",
        f"{command} usage {ADA} --by model",
    ]


def _own_command() -> str:
    """How to call `automna-proxy` from a terminal that knows nothing of our environment."""
    script = Path(sys.executable).with_name(PROGRAM)
    if shutil.which(PROGRAM) == str(script):
        return PROGRAM
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m automna_proxy"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, and the way out is not interrupted: no server is left behind."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
