"""What rounds of trouble before one simulated vendor have in common: a server that is stopped and started again, its users, and
what is asked of it; and the command of a module of such rounds."""

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import httpx

from tests.support.gateway import plan_table
from tests.support.hasty import HastyClock
from tests.support.process import Serving, serving

logger = logging.getLogger(__name__)

ALIVE_S = (0.05, 1.2)
"""How long a server is left alone before it is stopped."""
STOPS, KILLED = (0, 3), 0.8
"""How often in a round; so many of the stops are kills."""
PAUSE_S = 0.1
BOOKED_WITHIN_S = 120.0
VERIFIED_EVERY = 20
"""Rounds between two runs of `ledger verify`, which takes a second to start."""
HELD = (
    "SELECT 1 FROM reservations WHERE state = 'HELD' LIMIT 1",
    "SELECT 1 FROM deferred_work LIMIT 1",
)
"""What is held, and what is asked about."""


@dataclass
class Figures:
    """What the rounds have shown."""

    rounds: int = 0
    kills: int = 0
    stops: int = 0


FiguresT = TypeVar("FiguresT", bound=Figures)
VendorT = TypeVar("VendorT")


@dataclass
class Stopped(Generic[VendorT, FiguresT]):
    """A server that is stopped and started again, before one vendor."""

    server: Serving
    vendor: VendorT
    dice: random.Random
    figures: FiguresT

    async def kill_now(self) -> None:
        """And start it again."""
        await self.server.kill_all()
        self.figures.kills += 1
        await self._start()

    async def stop_now(self) -> None:
        """As an operator does, and start it again."""
        self.server.signal(signal.SIGTERM)
        assert await self.server.exit_status(30) == 0, self.server.log()
        self.figures.stops += 1
        await self._start()

    async def stop_now_and_then(
        self,
        *,
        stops: tuple[int, int] = STOPS,
        alive_s: tuple[float, float] = ALIVE_S,
        killed: float = KILLED,
    ) -> None:
        for _ in range(self.dice.randint(*stops)):
            await asyncio.sleep(self.dice.uniform(*alive_s))
            is_killed = killed == 1 or self.dice.random() < killed
            await (self.kill_now() if is_killed else self.stop_now())

    async def _start(self) -> None:
        self.server.port = int(self.server.url.rpartition(":")[2])
        await self.server.start()

    async def count_round(self) -> None:
        """It is over, and what holds of it was seen to hold."""
        self.figures.rounds += 1
        if self.figures.rounds % VERIFIED_EVERY == 0:
            await self.server.assert_verified()

    async def play(self, rounds: int, one: Callable[[int], Awaitable[None]]) -> None:
        """`one` is called with the number of each."""
        for number in range(rounds):
            await one(number)
            logger.info("%s", self.figures)
        await self.server.assert_verified()


@dataclass
class User:
    """One user of a round, with a client of their own."""

    user_id: str
    plan: str
    token: str
    http: httpx.AsyncClient
    told: set[str] = field(default_factory=set)
    """Ids that they know from an answer."""


@dataclass
class Stage(Stopped[VendorT, FiguresT]):
    """A server for which time flies. `plans`: of its users, by name."""

    clock: HastyClock
    plans: Mapping[str, Mapping[str, Any]]
    mount: ClassVar[str]
    token_header: ClassVar[str]
    answered: ClassVar[frozenset[int]]
    """Statuses of what an agent may ask."""

    @asynccontextmanager
    async def users(self, number: int, plans: Sequence[str]) -> AsyncIterator[list[User]]:
        """One of each plan, of this round."""
        users = []
        async with self.server.directory() as directory:
            for index, plan in enumerate(plans):
                user_id = f"r{number}u{index}"
                await directory.add_user(user_id, plan=plan)
                token = (await directory.create_token(user_id))[0]
                user = User(user_id, plan, token, self._client(token))
                await self._prepare(user)
                users.append(user)
        try:
            yield users
        finally:
            for user in users:
                await user.http.aclose()

    async def _prepare(self, user: User) -> None:
        """What a user has beside a plan and a token."""

    def _client(self, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.server.url + self.mount,
            headers={self.token_header: token},
            limits=httpx.Limits(max_keepalive_connections=0),  # no connection of a server that is gone
            trust_env=False,
            timeout=30,
        )

    async def ask(
        self, user: User, method: str, path: str, body: Any = None, **more: Any
    ) -> httpx.Response | None:
        """None where no answer came."""
        try:
            answer = await user.http.request(method, path, json=body, **more)
        except httpx.HTTPError:
            return None
        assert answer.status_code in self.answered, answer.text
        return answer

    def is_all_booked(self) -> bool:
        """Nothing is held, and nothing asked about."""
        return not any(self.server.rows(one) for one in HELD)

    async def all_booked(self) -> None:
        await self.server.until(self.is_all_booked, within_s=BOOKED_WITHIN_S)


def trouble_of(vendor: ModuleType, dice: random.Random) -> Any:
    """What a vendor of ours that keeps state does with a request: its work and no answer, neither, an error, or all but late."""
    kinds = (
        vendor.loses_reply(),
        vendor.loses_reply(is_reset=True),
        vendor.drops(),
        vendor.fails(500),
        vendor.fails(500, works=True),
        vendor.fails(429),
        vendor.answers_late(dice.uniform(0.05, 0.3)),
    )
    return dice.choice(kinds)


@asynccontextmanager
async def hasty_server(
    folder: Path,
    upstream: str,
    clock: HastyClock,
    plans: Mapping[str, Mapping[str, Any]],
    env: Mapping[str, str],
) -> AsyncIterator[Serving]:
    """Up, with `plans` for its users."""
    path = folder / "rounds_plans.toml"
    path.write_text("".join(plan_table(name, **limits) for name, limits in plans.items()))
    env = {**clock.env(), "PLANS_FILE": str(path), **env}
    async with serving(folder, upstream=upstream, module="tests.support.hasty", env=env) as server:
        yield server


def run(
    played: Callable[[Path, int, int], Coroutine[Any, Any, Figures]], module: str, words: str | None
) -> None:
    """The command of a module of such rounds."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=words)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        sys.stdout.write(f"{asyncio.run(played(Path(folder), options.rounds, options.seed))}\n")
