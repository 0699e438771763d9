"""Responses in the background: begun, polled, and what the store has of them."""

from typing import Any

from tests.support.gateway import DatedClock, Gateway
from tests.support.openai import openai_client_of, response_body

BACKGROUND = response_body(background=True)
LATER_S = 11
"""A poll is due by then."""


async def start(gateway: Gateway, token: str, **more: Any) -> str:
    async with openai_client_of(gateway, token) as client:
        answer = await client.post("/responses", json={**BACKGROUND, **more})
        assert answer.status_code == 200
        assert answer.json()["status"] == "queued"
        response_id: str = answer.json()["id"]
        return response_id


async def states(gateway: Gateway) -> list[str]:
    rows = await gateway.service.store.readers.rows("SELECT state FROM reservations ORDER BY id")
    return [str(state) for (state,) in rows]


async def works(gateway: Gateway) -> int:
    row = await gateway.service.store.readers.row("SELECT COUNT(*) FROM deferred_work")
    assert row is not None
    return int(str(row[0]))


async def polled(gateway: Gateway, clock: DatedClock, seconds: float = LATER_S) -> int:
    clock.advance(seconds)
    return await gateway.service.engine._deferrals.poll_due()
