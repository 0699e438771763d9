"""The proxy before the simulated AgentMail, and users who speak to it raw or by the vendor's own SDK."""

import importlib
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from simulators.agentmail import VENDOR_KEY, AgentMailSimulator
from tests.support.gateway import DatedClock, Gateway, running_gateway

with warnings.catch_warnings():
    # The SDK reads names of the WebSocket library that are to go.
    warnings.simplefilter("ignore", DeprecationWarning)
    import agentmail
    from agentmail.environment import AgentMailEnvironment

    importlib.import_module("agentmail.websockets.client")  # loaded late otherwise, where warnings are errors

MOUNT = "/api/agentmail"
NANOUSD = 2_000_000
"""An e-mail, by recipient."""


def variables(vendor: AgentMailSimulator) -> dict[str, str]:
    return {"AGENTMAIL_API_KEY": VENDOR_KEY, "AGENTMAIL_UPSTREAM_URL": vendor.url}


@dataclass
class User:
    """One user, on connections of their own."""

    user_id: str
    token: str
    gateway: Gateway
    http: httpx.AsyncClient
    sdk: agentmail.AsyncAgentMail

    async def inbox(self, username: str, **more: Any) -> str:
        """Make one; its id."""
        answer = await self.http.post("/v0/inboxes", json={"username": username, **more})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["inbox_id"])

    async def send(
        self, inbox: str, to: Any = "ann@x.y", subject: str = "Hi", *, key: str | None = None, **more: Any
    ) -> httpx.Response:
        headers = {} if key is None else {"idempotency-key": key}
        body = {"to": to, "subject": subject, **more}
        return await self.http.post(f"/v0/inboxes/{inbox}/messages/send", json=body, headers=headers)

    async def recipients(self) -> int:
        """As the ledger has them."""
        rows = await self.gateway.service.store.readers.rows(
            "SELECT usage FROM entries WHERE user_id = ?1 AND usage IS NOT NULL", (self.user_id,)
        )
        lines = [line for (usage,) in rows for line in orjson.loads(str(usage))]
        return sum(line["counts"].get("recipients", 0) for line in lines)

    async def spent(self) -> int:
        spent, held = await self.gateway.spent_and_held(self.user_id)
        assert held == 0
        return spent

    async def quota(self, day: str = "2026-11-20") -> tuple[int, int]:
        """E-mails of the day: spent and held."""
        row = await self.gateway.service.store.readers.row(
            "SELECT spent, held FROM accounts WHERE owner = ?1 AND meter = 'emails' AND period = ?2",
            (f"user:{self.user_id}", day),
        )
        return row or (0, 0)  # type: ignore[return-value]  # two integers

    async def assert_booked(self, recipients: int) -> None:
        """Ledger, money and quota agree, and nothing is held."""
        await self.gateway.quiet()
        assert await self.recipients() == recipients
        assert await self.spent() == recipients * NANOUSD
        assert await self.quota() == (recipients, 0)


@dataclass
class House:
    """A gateway with its vendor."""

    vendor: AgentMailSimulator
    gateway: Gateway
    users: dict[str, User]

    @property
    def ada(self) -> User:
        return self.users["ada"]

    @property
    def bob(self) -> User:
        return self.users["bob"]


@asynccontextmanager
async def user_of(gateway: Gateway, user_id: str) -> AsyncIterator[User]:
    token = await gateway.new_token(user_id)
    async with (
        httpx.AsyncClient(
            base_url=gateway.url + MOUNT,
            headers={"authorization": f"Bearer {token}"},
            limits=httpx.Limits(max_connections=100),
            trust_env=False,
            timeout=30,
        ) as http,
        httpx.AsyncClient(trust_env=False, timeout=30, follow_redirects=True) as of_sdk,
    ):
        environment = AgentMailEnvironment(
            http=gateway.url + MOUNT, websockets=gateway.url.replace("http", "ws") + MOUNT
        )
        sdk = agentmail.AsyncAgentMail(api_key=token, environment=environment, httpx_client=of_sdk)
        yield User(user_id, token, gateway, http, sdk)


@asynccontextmanager
async def house(
    folder: Path,
    vendor: AgentMailSimulator,
    *,
    env: Mapping[str, str] | None = None,
    clock: DatedClock | None = None,
    **plan: Any,
) -> AsyncIterator[House]:
    """Ada and Bob before one account; what they leave behind is clean."""
    clock = clock or DatedClock(2026, 11, 20)
    settings = {**variables(vendor), **(env or {})}
    async with running_gateway(folder, env=settings, clock=clock, **plan) as gateway:
        async with user_of(gateway, "ada") as ada, user_of(gateway, "bob") as bob:
            yield House(vendor, gateway, {"ada": ada, "bob": bob})
        await gateway.assert_clean()
