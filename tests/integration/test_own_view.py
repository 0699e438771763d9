"""What a user sees of their own, over the running proxy: all that was booked for them, and nothing of others."""

import asyncio
import csv
import io
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from metering.reports import GroupBy
from metering.requests import OUTCOMES
from routes.usage import REPORTS
from simulators.anthropic import AnthropicSimulator, breaks_after, fails, hangs
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway

USERS = ("ada", "bob")
MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5")


@dataclass
class House:
    """A gateway that has served two users."""

    gateway: Gateway
    tokens: dict[str, str]
    token_ids: dict[str, str]

    async def ask(self, user: str, path: str, /, **params: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.gateway.url, trust_env=False) as client:
            headers = {"authorization": f"Bearer {self.tokens[user]}"}
            answer = await client.get(f"/api/user/{path}", params=params, headers=headers)
        assert answer.headers.get("cache-control") == "no-store" or answer.status_code != 200
        return answer

    async def costs(self, user: str) -> dict[str, int]:
        """By request, as the ledger has it."""
        rows = await self.gateway.service.store.readers.rows(
            "SELECT reservation_id, SUM(cost_nanousd) FROM entries WHERE user_id = ?1 GROUP BY reservation_id",
            (user,),
        )
        return dict(rows)  # type: ignore[arg-type]  # an id and an integer


@pytest.fixture
async def house(
    tmp_path: Path, vendor: AnthropicSimulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    """Requests of each kind, by turns."""
    monkeypatch.setattr("routes.usage.REPORTS", REPORTS._replace(per_minute=10_000))
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        tokens = {user: await gateway.new_token(user, label=f"=label of {user}") for user in USERS}
        for user, model in itertools.product(USERS, MODELS):
            async with client_of(gateway, tokens[user]) as client:
                await client.post("/v1/messages", json=messages_body(model=model))
                vendor.next(fails(400))
                await client.post("/v1/messages", json=messages_body(model=model))
                vendor.next(breaks_after(6))
                with pytest.raises(httpx.HTTPError):
                    await client.post("/v1/messages", json=messages_body(model=model, stream=True))
                await client.get("/v1/models")
        await gateway.quiet()
        token_ids = {user: (await gateway.directory.tokens(user))[0].id for user in USERS}
        yield House(gateway, tokens, token_ids)


async def test_usage_in_every_form_is_the_users_own_and_adds_up_to_the_ledger(house: House) -> None:
    for user, other in (USERS, USERS[::-1]):
        cost = sum((await house.costs(user)).values())
        for count in (1, 2):
            for by in map(",".join, itertools.permutations(GroupBy, count)):
                document = (await house.ask(user, "usage", by=by)).json()
                assert document["total"]["cost_nanousd"] == cost > 0, by
                assert other not in str(document)
        text = (await house.ask(user, "usage", by="token,model", format="csv")).text
        lines = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        assert sum(int(line["cost_nanousd"]) for line in lines) == cost
        assert {line["token"] for line in lines} == {house.token_ids[user]}
        assert {line["token_label"] for line in lines} == {f"'=label of {user}"}
        assert other not in text


async def test_every_request_is_listed_with_what_was_booked_for_it(house: House) -> None:
    for user in USERS:
        found: dict[str, int] = {}
        before: dict[str, str] = {}
        while True:
            page = (await house.ask(user, "requests", limit=3, **before)).json()
            found |= {request["request_id"]: request["cost_nanousd"] for request in page["requests"]}
            if page["next"] is None:
                break
            before = {"before": page["next"]}
        assert found == await house.costs(user)
        assert len(found) == 8


async def test_no_parameter_shows_another_users_requests(house: House) -> None:
    theirs = await house.costs("bob")
    everything = (await house.ask("bob", "requests")).json()["requests"]
    values: dict[str, list[Any]] = {
        "limit": [1, 200],
        "before": ["999999999999999-999999999999999", "0-0"],
        "surface": ["anthropic", "openai", "%", "bob"],
        "model": [*{request["model"] for request in everything if request["model"]}, "' OR 1=1 --"],
        "outcome": list(OUTCOMES),
        "token": [house.token_ids["bob"], house.token_ids["ada"], house.tokens["bob"]],
    }
    asked = [(), *itertools.chain(*(itertools.combinations(values, count) for count in (1, 2)))]
    for names in asked:
        for chosen in itertools.product(*(values[name] for name in names)):
            params = dict(zip(names, chosen, strict=True))
            answer = await house.ask("ada", "requests", **params)
            assert answer.status_code == 200, params
            listed = {request["request_id"] for request in answer.json()["requests"]}
            assert not listed & set(theirs), params
            assert "bob" not in answer.text
    assert (await house.ask("ada", "requests", token=house.token_ids["bob"])).json()["requests"] == []


async def test_nobody_can_be_named(house: House) -> None:
    for path, name in itertools.product(
        ("usage", "limits", "requests"), ("user", "user_id", "owner", "token_ids")
    ):
        answer = await house.ask("ada", path, **{name: "bob"})
        assert answer.status_code == 400
        assert f"given '{name}', expected" in answer.json()["error"]


async def test_a_request_is_running_until_it_is_over(house: House, vendor: AnthropicSimulator) -> None:
    gate = asyncio.Event()
    vendor.next(hangs(gate=gate))
    async with client_of(house.gateway, house.tokens["ada"]) as client:
        asking = asyncio.get_running_loop().create_task(client.post("/v1/messages", json=messages_body()))
        while not (page := (await house.ask("ada", "requests")).json())["running"]:
            await asyncio.sleep(0.01)
        theirs = (await house.ask("bob", "requests")).json()
        limits = (await house.ask("ada", "limits")).json()
        gate.set()
        answer = await asking
    (running,) = page["running"]
    assert running["request_id"] == answer.headers["x-automna-request-id"]
    assert running["request_id"] not in {request["request_id"] for request in page["requests"]}
    assert running["held_nanousd"] == limits["meters"]["credits"]["held_nanousd"] > 0
    assert limits["concurrent_requests"]["held"] == 1
    assert theirs["running"] == []
    await house.gateway.quiet()
    page = (await house.ask("ada", "requests", limit=1)).json()
    assert [request["request_id"] for request in page["requests"]] == [running["request_id"]]
    assert page["running"] == []
