"""For operators: all users' machines, what is wished of them, and what a look at Fly's lists finds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.errors import Reason, Refused
from metering.reports import QuestionError
from provisioning.errors import Code
from provisioning.fly import FlyError, Trouble
from provisioning.instances import EVENTS_MAX, STATUSES
from provisioning.machines import Machine
from routes.given import Query, bad, body_of, object_of, query_of, shown, understood
from routes.machines import MachineDesk, failure, taken
from routes.operators import ACTOR
from routes.usage import private

LISTED, LISTED_MAX = 50, 500
"""Machines in one answer, usually and at most."""
EVENTS_SHOWN = 100
WISHES = ("start", "stop", "suspend", "update", "rotate")
"""Of a machine that there is, as paths below it and as methods of `Machines`."""

_ACCEPTED = 202

Wish = Callable[..., Awaitable[Machine]]


class Fleet:
    """All machines. Every method raises Refused."""

    def __init__(self, desk: MachineDesk) -> None:
        self._desk = desk
        self._machines = desk.machines
        self._looking = asyncio.Lock()

    async def listed(self, query: Query) -> dict[str, Any]:
        """The page that the query asks for, by user id."""
        status = understood(_status_of, query.get("status", ""))
        limit = understood(_up_to(LISTED_MAX), query.get("limit", str(LISTED)))
        found = await self._machines.all(status=status, after=query.get("after", ""), at_most=limit)
        return {
            "machines": [machine.as_json(is_whole=True) for machine in found],
            "next": found[-1].instance.user_id if len(found) == limit else None,
        }

    async def provision(self, body: bytes) -> Machine:
        """For the user that the body names."""
        user_id = object_of(body, ("user",)).get("user")
        if not isinstance(user_id, str) or not user_id:
            raise bad(f"user: given {shown(user_id)}, expected a user's id")
        return await self._wished(self._machines.provision, user_id)

    async def wished(self, wish: str, user_id: str, body: bytes) -> Machine:
        """One of WISHES, or `deprovision`."""
        object_of(body, ())
        taking: Wish = getattr(self._machines, wish)
        return await self._wished(taking, user_id)

    async def _wished(self, taking: Wish, user_id: str) -> Machine:
        self._desk.require_fly()
        with taken():
            return await taking(user_id, actor=ACTOR)

    async def one(self, user_id: str) -> Machine:
        found = await self._machines.of(user_id)
        if found is None:
            raise Refused(Reason.OBJECT_NOT_FOUND, f"{user_id} has no machine")
        return found

    async def events(self, user_id: str, query: Query) -> dict[str, Any]:
        """What happened to a user's machine, the newest first."""
        limit = understood(_up_to(EVENTS_MAX), query.get("limit", str(EVENTS_SHOWN)))
        await self.one(user_id)
        events = await self._machines.events(user_id, at_most=limit)
        return {"events": [event.as_json() for event in events]}

    async def reconciled(self, body: bytes) -> dict[str, Any]:
        """One look at Fly's lists, one at a time. Raises FlyError."""
        reconcile = self._desk.require_fly()
        repairs = object_of(body, ("repair",)).get("repair", False)
        if not isinstance(repairs, bool):
            raise bad(f"repair: given {shown(repairs)}, expected true or false")
        if self._looking.locked():
            raise Refused(Reason.CONFLICT, "Such a look is under way: ask again when it is over.")
        async with self._looking:
            return (await reconcile(repairs=repairs)).as_json()


def fleet_routes(fleet: Fleet) -> list[Route]:
    """`/machines`, all below it, and `/reconcile`: to be mounted where only operators come."""
    deprovision = _wishing(fleet, "deprovision")

    async def admin_machines(request: Request) -> Response:
        if request.method == "POST":
            return _told(await fleet.provision(await body_of(request)), _ACCEPTED)
        return private(await fleet.listed(query_of(request, ("status", "after", "limit"))))

    async def admin_machine(request: Request) -> Response:
        if request.method == "DELETE":
            return await deprovision(request)
        query_of(request, ())
        return _told(await fleet.one(request.path_params["user"]))

    async def admin_machine_events(request: Request) -> Response:
        return private(await fleet.events(request.path_params["user"], query_of(request, ("limit",))))

    async def admin_reconcile(request: Request) -> Response:
        try:
            return private(await fleet.reconciled(await body_of(request)))
        except FlyError as error:
            is_retryable = error.trouble is Trouble.AGAIN
            return failure(request, f"Fly: {error}", _code_of(error), is_retryable=is_retryable, after_s=None)

    return [
        Route("/machines", admin_machines, methods=["GET", "POST"]),
        Route("/machines/{user}", admin_machine, methods=["GET", "DELETE"]),
        Route("/machines/{user}/events", admin_machine_events, methods=["GET"]),
        *(Route(f"/machines/{{user}}/{wish}", _wishing(fleet, wish), methods=["POST"]) for wish in WISHES),
        Route("/reconcile", admin_reconcile, methods=["POST"]),
    ]


def _wishing(fleet: Fleet, wish: str) -> Callable[[Request], Awaitable[Response]]:
    async def admin_machine_wish(request: Request) -> Response:
        query_of(request, ())
        machine = await fleet.wished(wish, request.path_params["user"], await body_of(request))
        return _told(machine, _ACCEPTED)

    return admin_machine_wish


def _told(machine: Machine, status: int = 200) -> Response:
    return private(machine.as_json(is_whole=True), status)


def _code_of(error: FlyError) -> Code:
    if error.trouble in {Trouble.UNAUTHORIZED, Trouble.FOREIGN}:
        return Code.PROVIDER_UNAUTHORIZED
    return Code.PROVIDER_UNAVAILABLE if error.trouble is Trouble.AGAIN else Code.PROVIDER_REFUSED


def _status_of(text: str) -> str:
    if text and text not in STATUSES:
        raise QuestionError(f"status: given {text!r}, expected one of {', '.join(STATUSES)}")
    return text


def _up_to(at_most: int) -> Callable[[str], int]:
    def limit_of(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= at_most:
            raise QuestionError(f"limit: given {text!r}, expected a whole number from 1 to {at_most}")
        return int(text)

    return limit_of
