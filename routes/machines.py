"""For whoever holds a gateway token: how far the user's own machine has come, and the way into it.

Nothing here waits for a vendor: a wish is a row that `provisioning` makes true, and an answer tells how it stands.
"""

import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from metering.admission import Caller
from metering.clock import Clock, instant
from metering.errors import Reason, Refused
from metering.terms import GATEWAY_OPERATION, PROVISION_OPERATION, USER_SURFACE
from metering.users import NotFoundError
from metering.values import immutable
from provisioning.instances import ERROR, GONE, READY, RUNNING
from provisioning.machines import (
    POLL_AFTER_S,
    Machine,
    MachineError,
    Machines,
    NoMachineError,
    not_started,
)
from provisioning.reconcile import Reconciled
from proxy.telemetry import OWN_EXCHANGE, OwnExchange
from routes.callers import Callers, OwnRate
from routes.given import query_of
from routes.usage import private

MACHINE_CALLS = OwnRate("machine-calls", "calls about the machine", 120)
"""Per user, and per token that was handed on: two pages that wait for a machine ask 60 times a minute."""
MACHINE_OPERATION = "machine"
LAZILY = "user"
"""Who wished a machine that its user was the first to ask for."""
AGAIN_AFTER_S, AGAIN_DOUBLED_MAX = 60, 6
"""What was given up is not begun again before: whoever waits for it asks every two seconds. Twice as long each time, an hour at
most."""
NO_FLY = "Machines need FLY_API_TOKEN, which is not set."

_ACCEPTED, _UNAVAILABLE = 202, 503


class Reconcile(Protocol):
    """One look at Fly's lists, with repairs or without. Raises FlyError."""

    def __call__(self, *, repairs: bool) -> Awaitable[Reconciled]: ...


@immutable
class MachineDesk:
    """What the endpoints stand on. `reconcile` is None where FLY_API_TOKEN is not set: then nothing is wished of machines."""

    machines: Machines
    clock: Clock
    reconcile: Reconcile | None

    def require_fly(self) -> Reconcile:
        """Raises Refused."""
        if self.reconcile is None:
            raise Refused(Reason.NOT_CONFIGURED, NO_FLY)
        return self.reconcile


def machine_routes(desk: MachineDesk, callers: Callers) -> list[Route]:
    """`/api/user/machine` and `/api/user/gateway`. The endpoints' names are the operations in scopes, lines and metrics."""

    async def caller_of(request: Request, operation: str) -> Caller:
        caller = await callers.identified(request, operation)
        is_child = caller.token is not None and caller.token.is_child
        callers.count(request, MACHINE_CALLS, caller.token_id if is_child else caller.user_id)
        query_of(request, ())
        return caller

    async def machine(request: Request) -> Response:
        caller = await caller_of(request, MACHINE_OPERATION)
        found = await desk.machines.of(caller.user_id)
        return private(not_started() if found is None else found.as_json())

    async def gateway(request: Request) -> Response:
        caller = await caller_of(request, GATEWAY_OPERATION)
        desk.require_fly()
        found = await desk.machines.of(caller.user_id)
        if found is None:
            found = await _begun(desk, caller)
        _require_wanted(found)
        if found.status == READY:
            ticket, until_ms = await desk.machines.ticket(found)
            return private(
                {
                    "status": found.status,
                    "url": found.url,
                    "ticket": ticket,
                    "expires_at": instant(until_ms),
                }
            )
        if found.status == ERROR:
            after_s = _again_after_s(desk, found, caller)
            if after_s is None or after_s > 0:
                return _given_up(request, found, after_s)
            found = await _begun(desk, caller)
        return _after(private({"status": found.status}, _ACCEPTED), POLL_AFTER_S)

    return [
        Route("/api/user/machine", machine, methods=["GET"]),
        Route("/api/user/gateway", gateway, methods=["GET"]),
    ]


async def _begun(desk: MachineDesk, caller: Caller) -> Machine:
    """A machine for who has none, or whose last one was given up. Raises Refused: not with this token."""
    if caller.token is not None:
        caller.token.require(USER_SURFACE, PROVISION_OPERATION)
    with taken():
        found = await desk.machines.provision(caller.user_id, actor=LAZILY, takes_up_gone=False)
    _require_wanted(found)  # taken away by an operator just now
    return found


def _require_wanted(machine: Machine) -> None:
    """Raises Refused: it is wished that there is no way into it."""
    one = machine.instance
    facts: dict[str, int | str] = {
        "status": one.status,
        "desired": one.desired,
        "over_budget": bool(one.is_over_budget),
    }
    if one.status == GONE:
        message = (
            "There is no machine any more: it was taken away, and only an operator can provision another."
        )
        raise Refused(Reason.OBJECT_NOT_FOUND, message, facts=facts)
    if one.desired == GONE:
        raise Refused(Reason.CONFLICT, "The machine is being taken away.", facts=facts)
    if one.aim == RUNNING:
        return
    message = f"The machine is {one.aim}: an operator has to start it."
    if one.desired == RUNNING:
        message = "The machine is suspended, because the account's budget is spent."
    raise Refused(Reason.CONFLICT, message, facts=facts)


def _again_after_s(desk: MachineDesk, machine: Machine, caller: Caller) -> int | None:
    """In how many seconds the caller's asking begins anew what was given up: 0 at once, None never."""
    one = machine.instance
    if not one.is_retryable or not _may_provision(caller):
        return None
    since_ms = desk.clock.now_ms() - one.updated_at_ms
    pause_s: int = AGAIN_AFTER_S * 2 ** min(max(one.given_up - 1, 0), AGAIN_DOUBLED_MAX)
    return max(0, math.ceil(pause_s - since_ms / 1000))


def _may_provision(caller: Caller) -> bool:
    try:
        if caller.token is not None:
            caller.token.require(USER_SURFACE, PROVISION_OPERATION)
    except Refused:
        return False
    return True


def _given_up(request: Request, machine: Machine, after_s: int | None) -> Response:
    one = machine.instance
    message = f"The machine did not come up ({one.error_code})."
    if after_s is not None:
        message += f" Ask again in {after_s} seconds, and it is tried again."
    elif not one.is_retryable:
        message += " Trying again does not help: an operator has to act."
    return failure(request, message, one.error_code, is_retryable=bool(one.is_retryable), after_s=after_s)


def failure(
    request: Request, message: str, code: str | None, *, is_retryable: bool, after_s: int | None
) -> Response:
    """That something did not come about at a vendor, in plain dialect."""
    own: OwnExchange = request.scope[OWN_EXCHANGE]
    told = {"error": message, "code": code, "retryable": is_retryable, "request_id": own.request_id}
    return _after(private(told, _UNAVAILABLE), after_s)


def _after(response: Response, seconds: int | None) -> Response:
    if seconds is not None:
        response.headers["retry-after"] = str(seconds)
    return response


@contextmanager
def taken() -> Iterator[None]:
    """A wish that cannot be taken is refused."""
    try:
        yield
    except (NoMachineError, NotFoundError) as error:
        raise Refused(Reason.OBJECT_NOT_FOUND, str(error)) from None
    except MachineError as error:
        raise Refused(Reason.CONFLICT, str(error)) from None
