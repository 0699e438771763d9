"""A vendor whose sessions bear a tag in their metadata, are listed in a bare array and run on: as its declaration says.

It stands for vendors of that kind; nobody serves it.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest

from automna_proxy.service import swept_once
from metering.ledger import NO_PERIOD, OPEN_REQUESTS, Hold, Intent, Ledger, Reservation
from metering.orphans import State
from metering.users import Directory
from proxy.errors import PlainJson
from proxy.meters import Free, NothingToRead
from proxy.rewriting import tag_of
from proxy.surface import (
    BEARER,
    PASS_ALL,
    AnswerHead,
    Deferred,
    Demand,
    Ending,
    Example,
    HandsOut,
    Inbound,
    Names,
    Observer,
    Operation,
    Pricing,
    Surface,
    Swept,
    Tag,
    Upstream,
)
from simulators.script import Ready, head
from simulators.server import ReceivedRequest, SimulatorServer
from tests.support.background import polled, states, works
from tests.support.gateway import DatedClock, Gateway, running_gateway

RUNNING, RELEASE = "RUNNING", b'{"status":"REQUEST_RELEASE"}'


class SessionObserver(NothingToRead):
    """Reads a session's status."""

    def __init__(self) -> None:
        super().__init__()
        self._body = b""

    def feed(self, chunk: bytes) -> int:
        self._body += chunk
        return PASS_ALL

    @property
    def is_running(self) -> bool:
        return bool(self._body) and orjson.loads(self._body).get("status") == RUNNING


class SessionMeter(Free):
    @property
    def is_free(self) -> bool:
        return False

    def read(self, request: Inbound, pricing: Pricing) -> Demand:
        return Demand(is_deferred=True)

    def observe(self, request: Inbound, demand: Demand, answer: AnswerHead) -> Observer:
        return SessionObserver()


def is_running(observer: Observer) -> bool:
    assert isinstance(observer, SessionObserver)
    return observer.is_running


IN_PATH = (Names("session", "No such session.", path_param="session_id"),)
SURFACE = Surface(
    name="sessions",
    provider="sessions",
    mounts=("/api/sessions",),
    upstream=Upstream(
        "http://127.0.0.1:1", url_env="SESSIONS_URL", key_env="SESSIONS_KEY", credential=BEARER
    ),
    token_places=(BEARER,),
    swept=(Swept("session", "/v1/sessions?status=RUNNING", "id", tag="userMetadata.automna"),),
    operations=(
        Operation(
            "POST",
            "/v1/sessions",
            meter=SessionMeter(),
            tag=Tag("userMetadata.automna"),
            hands_out=(HandsOut("session", "id"),),
            deferred=Deferred(
                "session",
                "/v1/sessions/{id}",
                is_running=is_running,
                ending=Ending("POST", "/v1/sessions/{id}", RELEASE),
            ),
            may_lack_body=True,
            example=Example("/v1/sessions"),
        ),
        Operation(
            "GET",
            "/v1/sessions/{session_id}",
            meter=Free(),
            names=IN_PATH,
            hides=("automna",),
            example=Example("/v1/sessions/s"),
        ),
    ),
    dialect=PlainJson(),
)


class Vendor(SimulatorServer):
    """Sessions by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, dict[str, Any]] = {}
        self._numbers = itertools.count(1)

    def add(self, user_metadata: Any) -> dict[str, Any]:
        ident = f"session-{next(self._numbers)}"
        made = {"id": ident, "status": RUNNING, "userMetadata": user_metadata, "proxyBytes": 0}
        self.sessions[ident] = made
        return made

    def answer(self, request: ReceivedRequest) -> Ready:
        ident = request.path.removeprefix("/v1/sessions").strip("/")
        if ident and ident not in self.sessions:
            return self._says({"message": "Not found"}, 404)
        if request.method == "GET":
            found = [one for one in self.sessions.values() if one["status"] == RUNNING]
            return self._says(self.sessions[ident] if ident else found)
        if ident:
            assert request.body == RELEASE
            self.sessions[ident]["status"] = "COMPLETED"
            return self._says(self.sessions[ident])
        return self._says(self.add(request.json().get("userMetadata", {})), 201)

    def _says(self, answer: Any, status: int = 200) -> Ready:
        body = orjson.dumps(answer)
        return Ready(
            head(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]) + body
        )


@dataclass
class House:
    vendor: Vendor
    gateway: Gateway
    clock: DatedClock

    @asynccontextmanager
    async def client(self, user_id: str) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"authorization": f"Bearer {await self.gateway.new_token(user_id)}"}
        url = f"{self.gateway.url}/api/sessions"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
            yield client

    async def died(self, user_id: str, *, due_in_s: float = 900.0) -> str:
        """A request whose worker died before it had its answer; its session runs at the vendor."""
        dead = Ledger(self.gateway.service.store, self.clock, "wrk_dead")
        hold = Hold(f"user:{user_id}", OPEN_REQUESTS, NO_PERIOD, 1, 10)
        due_at_ms = self.clock.now_ms() + round(due_in_s * 1000)
        number = len(self.vendor.sessions)
        intent = Intent(
            f"req_dead{number}",
            user_id,
            "tok",
            "sessions",
            "POST /v1/sessions",
            None,
            (hold,),
            due_at_ms=due_at_ms,
        )
        assert isinstance(await dead.reserve(intent), Reservation)
        return str(self.vendor.add({"automna": tag_of(intent.id)})["id"])

    async def swept(self) -> dict[str, tuple[State, str | None]]:
        service = self.gateway.service
        (found,) = await swept_once(service.settings, service.store, self.clock, is_dry=False)
        return {orphan.trace.one.upstream_id: (orphan.state, orphan.user_id) for orphan in found.orphans}


@pytest.fixture
async def at(tmp_path, monkeypatch) -> AsyncIterator[House]:
    for module in ("settings", "service"):
        monkeypatch.setattr(f"automna_proxy.{module}.SURFACES", (SURFACE,))
    clock = DatedClock(2026, 11, 20)
    async with Vendor() as vendor:
        env = {"SESSIONS_URL": vendor.url, "SESSIONS_KEY": "key"}
        async with running_gateway(tmp_path, env=env, clock=clock) as gateway:
            yield House(vendor, gateway, clock)


async def test_the_tag_goes_up_beside_the_callers_own_words_and_does_not_come_down(at: House):
    async with at.client("ada") as ada:
        for body in (None, {"userMetadata": {"own": "word"}, "timeout": 60}):
            made = await ada.post("/v1/sessions", **({} if body is None else {"json": body}))
            own = {} if body is None else {"own": "word"}
            assert (made.status_code, made.json()["userMetadata"]) == (201, own)
            kept = at.vendor.sessions[made.json()["id"]]
            assert kept["userMetadata"] == {**own, "automna": tag_of(made.headers["x-automna-request-id"])}
            shown = await ada.get(f"/v1/sessions/{made.json()['id']}")
            assert shown.json() == {**kept, "userMetadata": own}
        refused = await ada.post("/v1/sessions", json={"userMetadata": {"automna": tag_of("req_1")}})
        assert (refused.status_code, len(at.vendor.sessions)) == (400, 2)
        assert await at.swept() == {}, "both have their owner"


async def test_what_a_dead_request_made_is_its_user_s_and_is_booked_when_it_ends(at: House):
    async with at.client("ada") as ada, at.client("bob") as bob:
        session = await at.died("ada")
        at.vendor.add({"automna": "another deployment's"})
        at.vendor.add({"automna": tag_of("req_unheard_of")})
        at.vendor.add({})
        assert await at.swept() == {
            session: (State.BOUND, "ada"),
            **{f"session-{number}": (State.UNKNOWN, None) for number in (2, 3, 4)},
        }
        assert [(await one.get(f"/v1/sessions/{session}")).status_code for one in (ada, bob)] == [200, 404]
        await polled(at.gateway, at.clock)
        assert (await works(at.gateway), "HELD" in await states(at.gateway)) == (1, True)
        at.vendor.sessions[session]["status"] = "COMPLETED"
        await polled(at.gateway, at.clock)
        entries = [entry for entry in await at.gateway.entries() if entry["reservation_id"] == "req_dead0"]
        assert [entry["kind"] for entry in entries] == ["settle"]
        assert await works(at.gateway) == 0
        await at.gateway.assert_clean()


async def test_what_is_booked_already_is_bound_and_not_asked_about(at: House):
    async with at.client("ada") as ada:
        made = (await ada.post("/v1/sessions")).json()["id"]
        at.vendor.sessions[made]["status"] = "COMPLETED"
        await polled(at.gateway, at.clock)
        await at.gateway.quiet()
        sql = "DELETE FROM owned_objects"  # as if its row had never been written
        with at.gateway.locked_store() as other:
            other.execute(sql)
            other.execute("COMMIT")
        at.vendor.sessions[made]["status"] = RUNNING
        assert await at.swept() == {made: (State.BOUND, "ada")}
        assert await works(at.gateway) == 0


async def test_what_runs_for_a_dead_request_of_a_disabled_user_is_found_and_ended(at: House):
    async with at.client("ada"):
        session = await at.died("ada")
        await Directory(at.gateway.service.store, at.clock).disable("ada")
        assert await at.swept() == {session: (State.BOUND, "ada")}
        await Directory(at.gateway.service.store, at.clock).disable("ada")  # a change to be heard of
        await at.gateway.until(lambda: at.vendor.sessions[session]["status"] == "COMPLETED")
        await at.gateway.quiet()
        assert await states(at.gateway) == ["SETTLED"]
        await at.gateway.assert_clean()
