"""`kill -9` of the whole server in the middle of streams: every request that the vendor saw is in the ledger,
once; nothing stays held; budgets admit again."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import pytest

from metering.tasks import spawn
from simulators.anthropic import Answered, AnthropicSimulator, stalls_after, streams
from simulators.script import Gate, Pause
from simulators.server import State
from tests.support.gateway import messages_body
from tests.support.process import Serving, serving

pytestmark = pytest.mark.chaos

ROUNDS = 4
AGENTS = 20
ALIVE_S = (0.2, 1.2)
"""How long the server is under load before it is killed, at random, from the first running stream on."""
CREDITS = 9_000
"""A month's, of each round's user: above what a round can spend, below what one request may hold at most."""
NANOUSD_PER_CREDIT = 100_000
OUTPUT_NANOUSD = 15_000
"""A token of claude-sonnet-4-5's output (its list price: 15 USD a million)."""
INPUT_NANOUSD = 3_000
BODY_BYTES_PER_TOKEN = 2
LEFT_NANOUSD = 500_000
"""What the last, largest request of a round leaves of the budget: less than the smallest hold (1.5 million)."""
PACED = streams(events=15, pace_s=0.02, before=(Pause(0.01),))
QUICK_CHECKPOINTS = {"CHECKPOINT_S": "0.05"}


@dataclass
class Agent:
    """One user's machine with a gateway token of its own: it sends one request after the other."""

    token: str
    tag: str
    dice: random.Random
    on_end: Callable[[], None] = lambda: None
    """Called the moment it has the end of an answer."""
    seen_whole: set[str] = field(default_factory=set)
    """The vendor's ids of the messages that came to their end."""
    broken_off: int = 0

    async def work(self, server: Serving, vendor: AnthropicSimulator) -> None:
        """Until the server is gone."""
        for number in range(10_000):
            request = self.dice.choice([self.stream, self.stream, self.whole, self.leave])
            try:
                async with server.client(self.token) as client:
                    await request(client, f"{self.tag}:{number}", vendor)
            except httpx.HTTPError:
                self.broken_off += 1
                return

    async def stream(self, client: httpx.AsyncClient, tag: str, vendor: AnthropicSimulator) -> None:
        body = b""
        async with client.stream("POST", "/v1/messages", json=tagged(tag, stream=True)) as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_raw():
                body += chunk
                if b"event: message_stop" in body:
                    self.ended(message_id(body.partition(b"data: ")[2].partition(b"\n")[0], "message"))

    async def whole(self, client: httpx.AsyncClient, tag: str, vendor: AnthropicSimulator) -> None:
        answer = await client.post("/v1/messages", json=tagged(tag))
        assert answer.status_code == 200
        self.ended(message_id(answer.content))

    def ended(self, message: str) -> None:
        self.seen_whole.add(message)
        self.on_end()

    async def leave(self, client: httpx.AsyncClient, tag: str, vendor: AnthropicSimulator) -> None:
        """Hang up in the middle of a stream: the server reads it on."""
        async with client.stream("POST", "/v1/messages", json=tagged(tag, stream=True)) as answer:
            assert answer.status_code == 200
            async for _ in answer.aiter_raw():
                return


def tagged(tag: str, **more) -> dict:
    return messages_body(metadata={"user_id": tag}, **more)


def message_id(data: bytes, *path: str) -> str:
    found = orjson.loads(data)
    for key in path:
        found = found[key]
    return found["id"]


async def new_agents(server: Serving, user_id: str, dice: random.Random) -> list[Agent]:
    async with server.directory() as directory:
        await directory.add_user(user_id, plan="test")
        return [
            Agent((await directory.create_token(user_id, label=tag))[0], tag, random.Random(dice.random()))
            for tag in (f"{user_id}-{number}" for number in range(AGENTS))
        ]


def running_streams(vendor: AnthropicSimulator) -> int:
    """Answers whose head is out and whose end is not."""
    return sum(
        exchange.state is State.RUNNING and exchange.reports.is_streaming and exchange.sent_bytes > 0
        for exchange in vendor.exchanges
    )


def of_agent(vendor: AnthropicSimulator, agent: Agent) -> list[Answered]:
    return [told for told in vendor.answers if told.tag.rpartition(":")[0] == agent.tag]


@dataclass(frozen=True)
class Row:
    """A reservation and the entry that resolved it."""

    state: str
    hold_nanousd: int
    kind: str
    basis: str
    outcome: str
    cost_nanousd: int
    usage: str | None
    upstream_request_id: str | None


def rows_of(server: Serving, agent: Agent) -> list[Row]:
    """One row per resolution; a reservation without one fails here."""
    rows = server.rows(
        "SELECT state, hold_nanousd, kind, basis, outcome, cost_nanousd, usage, upstream_request_id "
        "FROM reservations LEFT JOIN entries ON reservation_id = reservations.id "
        "WHERE reservations.token_id = (SELECT id FROM gateway_tokens WHERE label = ?1) ORDER BY reservations.id",
        agent.tag,
    )
    return [Row(*row) for row in rows]


def cost_of(told: Answered) -> int:
    usage = told.usage
    assert usage is not None
    return usage.input_tokens * INPUT_NANOUSD + usage.output_tokens * OUTPUT_NANOUSD


def assert_nothing_is_lost(server: Serving, vendor: AnthropicSimulator, agent: Agent) -> Counter[str]:
    """What the vendor saw of this agent is in the ledger, each once; how often each kind of entry."""
    rows, seen = rows_of(server, agent), {told.request_id: told for told in of_agent(vendor, agent)}
    settled = [row for row in rows if row.kind == "settle"]
    expired = [row for row in rows if row.kind == "expire"]
    assert len(settled) + len(expired) + sum(row.kind == "void" for row in rows) == len(rows), rows
    booked = [row.upstream_request_id for row in settled]
    assert len(set(booked)) == len(booked), "booked twice"
    assert set(booked) <= set(seen), "booked, but the vendor never saw it"
    for row in settled:
        told = seen[str(row.upstream_request_id)]
        assert (row.basis, row.cost_nanousd) == ("reported", cost_of(told)), (row, told)
        assert orjson.loads(str(row.usage))[0]["counts"] == told.usage.counts()
    for row in expired:
        assert (row.basis, row.outcome) == ("estimated", "worker_died")
        assert 0 < row.cost_nanousd <= row.hold_nanousd
    unsettled = [told for told in seen.values() if told.request_id not in booked]
    assert len(unsettled) <= len(expired) <= len(unsettled) + 1, "lost; or held twice"
    assert not agent.seen_whole & {told.message_id for told in unsettled}, "the client has it, the ledger not"
    return Counter(row.kind for row in rows)


async def assert_budget_admits_again(server: Serving, token: str, user_id: str) -> None:
    """A request that needs all that is left of the budget is admitted: not one hold has leaked."""
    owner = f"user:{user_id}"
    ((spent,),) = server.rows("SELECT SUM(spent) FROM accounts WHERE owner = ?1 AND meter = 'money'", owner)
    left = CREDITS * NANOUSD_PER_CREDIT - spent - LEFT_NANOUSD
    body_tokens = 200 // BODY_BYTES_PER_TOKEN
    async with server.client(token) as client:
        max_tokens = (left - body_tokens * INPUT_NANOUSD) // OUTPUT_NANOUSD
        answer = await client.post("/v1/messages", json=messages_body(max_tokens=max_tokens))
        assert answer.status_code == 200, answer.text
        refused = await client.post("/v1/messages", json=messages_body(max_tokens=max_tokens + 200))
        assert refused.status_code == 402, "the request above was not as large as it was meant to be"


async def killed_at_the_next_end(server: Serving, agents: list[Agent]) -> None:
    killed = asyncio.Event()

    def kill() -> None:
        server.kill_group()
        killed.set()

    for agent in agents:
        agent.on_end = kill
    await killed.wait()


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_in_the_middle_of_streams_it_loses_nothing_and_admits_again(
    tmp_path: Path, workers: int
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    totals: Counter[str] = Counter()
    async with (
        AnthropicSimulator(default=PACED) as vendor,
        serving(
            tmp_path, upstream=vendor.url, workers=workers, env=QUICK_CHECKPOINTS, credits_per_month=CREDITS
        ) as server,
    ):
        for number in range(ROUNDS):
            user_id = f"round{number}"
            agents = await new_agents(server, user_id, dice)
            tasks = [spawn(agent.work(server, vendor), name=agent.tag) for agent in agents]
            await vendor.until(lambda: running_streams(vendor) >= 3)
            await asyncio.sleep(dice.uniform(*ALIVE_S))
            await vendor.until(lambda: running_streams(vendor) >= 1)
            if number % 2:  # not at any moment, but when a client has just got the end of its answer
                await killed_at_the_next_end(server, agents)
            await server.kill_all()
            await asyncio.gather(*tasks)
            assert sum(agent.broken_off for agent in agents) == AGENTS
            await server.start()
            await server.until_nothing_is_held()
            for agent in agents:
                totals += assert_nothing_is_lost(server, vendor, agent)
            totals["seen whole"] += sum(len(agent.seen_whole) for agent in agents)
            await server.assert_verified()
            await assert_budget_admits_again(server, agents[0].token, user_id)
    print(totals)
    assert totals["settle"] > ROUNDS
    assert totals["expire"] > ROUNDS, "the kills hit nothing: the test proves nothing"
    assert totals["seen whole"] > ROUNDS


async def test_when_one_of_two_workers_is_killed_the_other_keeps_its_streams_and_buries_it(
    tmp_path: Path,
) -> None:
    async with (
        AnthropicSimulator() as vendor,
        serving(tmp_path, upstream=vendor.url, workers=2, env=QUICK_CHECKPOINTS) as server,
    ):
        (agent, *_) = await new_agents(server, "u1", random.Random(1))
        gate = Gate()
        vendor.script = lambda _: stalls_after(6, gate=gate, text="A robin, I should say, or perhaps a wren.")
        before = server.workers_alive()
        victim_pid, victim = next(iter(before.items()))
        async with contextlib.AsyncExitStack() as stack:
            answers: dict[str, list[httpx.Response]] = {worker_id: [] for worker_id in before.values()}
            while min(map(len, answers.values())) < 2:
                client = await stack.enter_async_context(server.client(agent.token))
                asked = client.stream("POST", "/v1/messages", json=tagged(f"{agent.tag}:", stream=True))
                answer = await stack.enter_async_context(asked)
                answers[server.worker_of(answer)].append(answer)
            await vendor.until(lambda: running_streams(vendor) == len(vendor.answers))
            os.kill(victim_pid, signal.SIGKILL)
            for answer in answers.pop(victim):
                with pytest.raises(httpx.HTTPError):
                    await answer.aread()
            await server.until(lambda: len(server.workers_alive()) == 2)
            assert victim not in server.workers_alive().values()
            await server.until(lambda: held_by(server, victim) == 0)
            (survivor,) = set(before.values()) - {victim}
            assert held_by(server, survivor) == len(answers[survivor]), "the living keep what they hold"
            gate.open()
            for answer in answers[survivor]:
                assert b"event: message_stop" in await answer.aread()
        await server.until_nothing_is_held()
        counted = assert_nothing_is_lost(server, vendor, agent)
        assert counted == {
            "settle": len(answers[survivor]),
            "expire": len(vendor.answers) - len(answers[survivor]),
        }
        await server.assert_verified()


def held_by(server: Serving, worker_id: str) -> int:
    held = "SELECT COUNT(*) FROM reservations WHERE state = 'HELD' AND worker_id = ?1"
    ((count,),) = server.rows(held, worker_id)
    return int(count)
