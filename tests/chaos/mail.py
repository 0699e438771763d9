"""Mails under every trouble at once: answers lost at the vendor, webhooks repeated, the server killed and started again,
clients that repeat what they got no answer to. `python -m tests.chaos.mail --rounds 200 --seed 1`.

Every agent repeats its mail until it has the answer, as an SDK does: so each mail must be sent exactly once, and what the
ledger charged must be what the vendor sent. Others schedule drafts, and change, delete or send them while their time comes.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from metering.clock import SystemClock, instant
from metering.hooks import Hooks
from metering.store.database import Database
from metering.store.store import open_store
from metering.users import Directory
from simulators.agentmail import (
    VENDOR_KEY,
    WEBHOOK_SECRET,
    AgentMailSimulator,
    awkward_message_id,
    drops,
    fails,
    loses_reply,
)
from tests.chaos import rounds
from tests.chaos.rounds import Stopped, run
from tests.support.process import Serving, serving
from tests.support.receiver import Receiver, receiving

AGENTS = 8
MAILS_EACH = 3
GIVEN_UP_AFTER_S = 60.0
HOOKS_WITHIN_S = 120.0
PAUSE_S = 0.05
"""Between two attempts of an agent: shorter than any SDK's, so that many meet a server that has just come back."""
ALIVE_S = (0.05, 0.6)
"""How long a server is left alone before it is killed."""
KILLS = (0, 3)
TROUBLE = 0.3
"""Of the vendor's answers to a send, so many are no answer."""
RECIPIENT_NANOUSD = 2_000_000
PLANNERS, DRAFTS_EACH = 4, 3
"""Agents that schedule drafts, and how many each of them does."""
DUE_IN_S = (0.5, 4.0)
CONFLICT = 409
TICK_S = 0.1
"""Between two looks of the vendor for drafts that are due."""
RESOLVED_WITHIN_S = 120.0
"""A draft whose schedule's answer was lost is looked for several times."""
CHARGED = """
SELECT lines FROM entries WHERE surface IN ('email', 'agentmail') AND kind IN ('settle', 'expire')"""


@dataclass
class Figures(rounds.Figures):
    """What the rounds have shown."""

    mails: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    """Of agents, by status; `broken` without one."""
    asked: int = 0
    """Sends that the vendor was asked for."""
    hooks: int = 0
    """Mails that agents were told of."""
    drafts: Counter[str] = field(default_factory=Counter)
    """Scheduled, by what was done with them; `sent` of them."""


@dataclass
class Mail:
    """One mail of an agent: its subject is nobody else's."""

    subject: str
    recipients: tuple[str, ...]
    key: str | None
    path: str
    message_id: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return {"to": list(self.recipients), "subject": self.subject, "text": "Hello."}


class Round:
    """One server's life with its users, and what must hold at its end."""

    def __init__(self, stage: Stopped[AgentMailSimulator, Figures]) -> None:
        self._stage = stage
        self._server = stage.server
        self._vendor = stage.vendor
        self._dice = stage.dice
        self._figures = stage.figures
        self._mails: list[Mail] = []

    async def play(self, number: int, agent_url: str) -> None:
        tokens = await self._users(number, agent_url)
        inboxes = [await self._inbox_of(token) for token in tokens]
        sent_before, told = len(self._vendor.sent), len(self._vendor.events.recorded)
        self._vendor.script = self._trouble
        async with asyncio.TaskGroup() as tasks:
            for agent in range(AGENTS):
                user = agent % 2
                tasks.create_task(self._agent(f"r{number}a{agent}", tokens[user], inboxes[user]))
            for planner in range(PLANNERS):
                user = planner % 2
                tasks.create_task(self._planner(f"r{number}p{planner}", tokens[user], inboxes[user]))
            tasks.create_task(self._stage.stop_now_and_then(stops=KILLS, alive_s=ALIVE_S, killed=1))
        self._vendor.script = None
        while self._drafts_waiting():
            self._vendor.send_due()
            await asyncio.sleep(TICK_S)
        await self._tell_of_sent(told)
        await self._webhooks(inboxes)
        await self._server.until(lambda: not self._held(), within_s=RESOLVED_WITHIN_S)
        await self._check(sent_before)
        assert len(self._vendor.events.recorded) >= told

    async def _users(self, number: int, agent_url: str) -> list[str]:
        """Two, whose agents hear of mail; their gateway tokens."""
        tokens = []
        async with open_store(Database(self._server.store, busy_timeout_s=10)) as store:
            directory, hooks = Directory(store, SystemClock()), Hooks(store, SystemClock())
            for user in range(2):
                user_id = f"r{number}u{user}"
                await directory.add_user(user_id, plan="test")
                tokens.append((await directory.create_token(user_id))[0])
                await hooks.put(user_id, agent_url)
        return tokens

    async def _inbox_of(self, token: str) -> str:
        """Made on first use."""
        async with self._client(token) as client:
            await client.get("/api/user/email/inbox")
            answer = await client.get("/api/agentmail/v0/inboxes")
            (inbox,) = answer.json()["inboxes"]
            return str(inbox["inbox_id"])

    def _client(self, token: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self._server.url, headers=headers, trust_env=False, timeout=30)

    def _trouble(self, request: Any) -> Any:
        """What the vendor does with a send, or with what becomes of a draft: its work and no answer, neither, or an
        error."""
        if request.method == "GET" or (
            not request.path.endswith(("/send", "/drafts")) and "/drafts/" not in request.path
        ):
            return None
        self._figures.asked += 1
        if self._dice.random() >= TROUBLE:
            return None
        return self._dice.choice((loses_reply(), loses_reply(), drops(), fails(500)))

    async def _agent(self, name: str, token: str, inbox_id: str) -> None:
        for number in range(MAILS_EACH):
            recipients = tuple(
                f"{name}{number}to{one}@example.com" for one in range(self._dice.randint(1, 3))
            )
            key = f"{name}-{number}" if self._dice.random() < 0.5 else None
            path = self._dice.choice(
                ("/api/user/email/send", f"/api/agentmail/v0/inboxes/{inbox_id}/messages/send")
            )
            mail = Mail(f"{name} mail {number}", recipients, key, path)
            self._mails.append(mail)
            async with asyncio.timeout(GIVEN_UP_AFTER_S):
                while mail.message_id is None:
                    await self._attempt(mail, token)
                    await asyncio.sleep(PAUSE_S)

    async def _attempt(self, mail: Mail, token: str) -> None:
        headers = {} if mail.key is None else {"idempotency-key": mail.key}
        try:
            async with self._client(token) as client:
                answer = await client.post(mail.path, json=mail.body, headers=headers)
        except httpx.HTTPError:
            self._figures.attempts["broken"] += 1
            return
        self._figures.attempts[str(answer.status_code)] += 1
        assert answer.status_code in {200, 409, 429, 500, 502, 503, 504}, answer.text
        if answer.status_code == 200:
            document = answer.json()
            mail.message_id = document.get("messageId") or document.get("message_id")

    # drafts

    async def _planner(self, name: str, token: str, inbox_id: str) -> None:
        """Schedules drafts, and thinks better of some."""
        path = f"/api/agentmail/v0/inboxes/{inbox_id}/drafts"
        for number in range(DRAFTS_EACH):
            due_ms = SystemClock().now_ms() + round(self._dice.uniform(*DUE_IN_S) * 1000)
            recipients = [f"{name}{number}to{one}@example.com" for one in range(self._dice.randint(1, 3))]
            body: dict[str, Any] = {"to": recipients, "subject": f"{name} draft {number}"}
            body["send_at"] = instant(due_ms)
            if self._dice.random() < 0.5:
                body["client_id"] = f"{name}-{number}"
            made = await self._until_answered("POST", path, body, token)
            if made.status_code == CONFLICT:  # sent before its answer came
                self._figures.drafts["left"] += 1
                continue
            draft_path = f"{path}/{made.json()['draft_id']}"
            what = self._dice.choice(
                ("left", "deleted", "changed", "rescheduled", "unscheduled", "sent at once")
            )
            self._figures.drafts[what] += 1
            if what == "deleted":
                await self._until_answered("DELETE", draft_path, None, token)
            elif what == "changed":
                await self._until_answered("PATCH", draft_path, {"cc": [f"{name}cc@example.com"]}, token)
            elif what == "rescheduled":
                later = {"send_at": instant(due_ms + 1_000)}
                await self._until_answered("PATCH", draft_path, later, token)
            elif what == "unscheduled":
                await self._until_answered("PATCH", draft_path, {"send_at": None}, token)
            elif what == "sent at once":
                await self._until_answered("POST", f"{draft_path}/send", {}, token)

    async def _until_answered(
        self, method: str, path: str, body: dict[str, Any] | None, token: str
    ) -> httpx.Response:
        """Repeat a request until it has an answer that is no trouble: 404 is one, of a draft whose time has come. What a killed
        server had begun is 409 until somebody has asked the vendor what became of it."""
        said = "nothing"
        try:
            async with asyncio.timeout(RESOLVED_WITHIN_S):
                while True:
                    with suppress(httpx.HTTPError):
                        async with self._client(token) as client:
                            answer = await client.request(method, path, json=body)
                        said = f"{answer.status_code} {answer.text}"
                        assert answer.status_code in {200, 202, 404, 409, 429, 500, 502, 503, 504}, said
                        if answer.status_code in {200, 202, 404} or "is done" in answer.text:
                            return answer
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise AssertionError(f"{method} {path} has no other answer than {said}") from None

    def _drafts_waiting(self) -> bool:
        return any(
            draft.send_status == "scheduled"
            for inbox in self._vendor.organization.inboxes.values()
            for draft in inbox.drafts.values()
        )

    def _held(self) -> bool:
        return bool(self._server.rows("SELECT 1 FROM reservations WHERE state = 'HELD' LIMIT 1"))

    async def _tell_of_sent(self, told: int) -> None:
        """Of what was sent, in disorder: some of it not at all, some of it twice."""
        events = [one for one in self._vendor.events.recorded[told:] if one.event_type == "message.sent"]
        events = [one for one in events * 2 if self._dice.random() < 0.5]
        self._dice.shuffle(events)
        statuses = await self._vendor.deliver(f"{self._server.url}/api/webhooks/agentmail", *events)
        assert set(statuses) <= {204}, statuses

    async def _webhooks(self, inboxes: Sequence[str]) -> None:
        """A mail to each user, told in disorder, more than once."""
        for inbox_id in inboxes:
            self._vendor.receive(inbox_id, "ann@example.com", "News", f"News for {inbox_id}.")
        events = self._vendor.events.recorded[-len(inboxes) :] * 2
        self._dice.shuffle(events)
        statuses = await self._vendor.deliver(f"{self._server.url}/api/webhooks/agentmail", *events)
        assert set(statuses) == {204}, statuses

    async def _check(self, sent_before: int) -> None:
        everything = self._vendor.sent[sent_before:]
        sent = [one for one in everything if one.draft_id is None]
        drafts = [str(one.content.subject) for one in everything if one.draft_id is not None]
        assert len(set(drafts)) == len(drafts), "a draft was sent more than once"
        self._figures.drafts["sent"] += len(drafts)
        times = Counter(str(one.content.subject) for one in sent)
        assert times == Counter({mail.subject: 1 for mail in self._mails}), (
            "sent more than once, or not at all"
        )
        ids = {str(one.content.subject): one.message_id for one in sent}
        assert {mail.subject: mail.message_id for mail in self._mails} == ids, "told another mail's id"
        recipients = sum(len(one.recipients) for one in sent)
        charged = cost_nanousd = 0
        for (lines,) in self._server.rows(CHARGED):
            for _, meter, _, amount in orjson.loads(lines):
                charged += amount if meter == "emails" else 0
                cost_nanousd += amount if meter == "money" else 0
        total = sum(len(one.recipients) for one in self._vendor.sent)
        assert (charged, cost_nanousd) == (total, total * RECIPIENT_NANOUSD), (
            charged,
            cost_nanousd,
            total,
            recipients,
        )
        self._figures.mails += len(sent)
        await self._stage.count_round()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[tuple[Serving, AgentMailSimulator, Receiver]]:
    async with AgentMailSimulator(message_ids=awkward_message_id) as vendor, receiving() as agent:
        env = {
            "AGENTMAIL_API_KEY": VENDOR_KEY,
            "AGENTMAIL_UPSTREAM_URL": vendor.url,
            "AGENTMAIL_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "HOOKS_SECRET": "a secret for hooks, and long enough for it",
        }
        async with serving(folder, upstream=vendor.url, env=env) as server:
            yield server, vendor, agent


async def play(folder: Path, rounds: int, seed: int) -> Figures:
    """Rounds on one server that is killed again and again."""
    async with staged(folder) as (server, vendor, agent):
        stage = Stopped(server, vendor, random.Random(seed), Figures())
        await stage.play(rounds, lambda number: Round(stage).play(number, agent.url))
        wanted = 2 * rounds
        # What a dead courier had claimed is due again after half a minute.
        await server.until(lambda: len(agent.bodies_by_id()) == wanted, within_s=HOOKS_WITHIN_S)
        stage.figures.hooks = wanted
    return stage.figures


if __name__ == "__main__":
    run(play, "tests.chaos.mail", __doc__)
