"""What may be wished of users' machines, and what is told of them. Nothing here waits for a vendor: a wish is a row, and whoever
works (`worker.py`) makes it true.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import orjson

from metering.clock import Clock, instant
from metering.errors import Reason, Refused
from metering.ids import new_id
from metering.store.store import Store
from metering.stored_keys import StoredKey
from metering.values import immutable
from provisioning.instances import (
    DEPROVISIONING,
    ERROR,
    GONE,
    LISTED_MAX,
    MACHINE_KIND,
    NOT_STARTED,
    RUNNING,
    STARTING,
    STOPPED,
    SUSPENDED,
    Event,
    Instance,
    Instances,
    Resource,
)
from provisioning.names import app_names

WISHES_MAX = 20
"""How often a wish is made again that another came before."""
TICKET_VALID_S = 300
"""Of a ticket to a machine: long enough to open a page with."""
KEY_NAME = "machines"
STORE_ID_CHARS = 16
POLL_AFTER_S = 2
"""What who waits for a machine is told."""


class MachineError(Exception):
    """A wish cannot be taken; the message is for whoever wished."""


class NoMachineError(MachineError):
    """The user has no machine."""


@immutable
class Machine:
    """An instance with what was made for it."""

    instance: Instance
    resources: tuple[Resource, ...]
    url: str

    @property
    def status(self) -> str:
        return self.instance.status

    @property
    def machine_id(self) -> str | None:
        """Fly's own, once there is one."""
        return next((one.upstream_id for one in self.resources if one.kind == MACHINE_KIND), None)

    def as_json(self, *, is_whole: bool = False) -> dict[str, Any]:
        """For its user; with `is_whole` for operators."""
        one = self.instance
        error = None
        if one.error_code is not None:
            error = {"code": one.error_code, "retryable": bool(one.is_retryable)}
        told = {
            "status": one.status,
            "desired": one.desired,
            "over_budget": bool(one.is_over_budget),
            "error": error,
            "region": one.region,
            "url": self.url if one.ready_at_ms is not None and one.status != GONE else None,
            "machine": self.machine_id,
            "started_at": instant(one.started_at_ms),
            "updated_at": instant(one.updated_at_ms),
        }
        if not is_whole:
            return told
        return {
            "user": one.user_id,
            **told,
            "app": one.app_name,
            "generation": one.generation,
            "token": one.token_id,
            "attempts": one.attempts,
            "next_attempt_at": None if one.due_at_ms is None else instant(one.due_at_ms),
            "worker": one.worker_id,
            "resources": [each.as_json() for each in self.resources],
        }


class Machines:
    """The wishes, bound to one store. Everything raises Refused(STORE_UNAVAILABLE).

    `app_prefix`: what the names of apps begin with; `gateway_url`: where a machine is reached, `{app}` for its app's name.
    """

    def __init__(self, store: Store, clock: Clock, *, app_prefix: str, gateway_url: str) -> None:
        self.instances = Instances(store, clock)
        self._store = store
        self._clock = clock
        self.app_prefix = app_prefix
        self._gateway_url = gateway_url
        self._key = StoredKey(store, clock, KEY_NAME)

    # --- told ------------------------------------------------------------------------------------

    async def of(self, user_id: str) -> Machine | None:
        """A user's machine, also one that is gone; None: there never was one."""
        instance = await self.instances.of(user_id)
        return None if instance is None else await self._machine(instance)

    async def all(self, *, status: str = "", after: str = "", at_most: int = LISTED_MAX) -> list[Machine]:
        """By user id, those after `after`; with a `status` only those in it."""
        return [
            await self._machine(one)
            for one in await self.instances.all(status=status, after=after, at_most=at_most)
        ]

    async def events(self, user_id: str, *, at_most: int) -> Sequence[Event]:
        """The newest first."""
        return await self.instances.events(user_id, at_most=at_most)

    async def _machine(self, instance: Instance) -> Machine:
        return Machine(
            instance, tuple(await self.instances.resources(instance)), self.url_of(instance.app_name)
        )

    def app_names(self, user_id: str) -> list[str]:
        """The names that a user's app may have, the usual one first."""
        return list(app_names(self.app_prefix, user_id))

    def url_of(self, app_name: str) -> str:
        """Where the world reaches the machine of an app."""
        return self._gateway_url.replace("{app}", app_name)

    # --- wished ----------------------------------------------------------------------------------

    async def provision(self, user_id: str, *, actor: str, takes_up_gone: bool = True) -> Machine:
        """A machine for a user who has none: the same one however often it is wished. Raises NotFoundError; MachineError: the
        last one is being taken away still."""
        name = self.app_names(user_id)[0]
        await self.instances.begin(user_id, name, actor=actor, takes_up_gone=takes_up_gone)
        machine = await self._existing(user_id)
        if machine.status == DEPROVISIONING:
            raise MachineError("The machine is being taken away: ask for another when it is gone.")
        return machine

    async def start(self, user_id: str, *, actor: str) -> Machine:
        """Running, and awake now."""
        return await self._wish(user_id, RUNNING, status=STARTING, actor=actor)

    async def stop(self, user_id: str, *, actor: str) -> Machine:
        """Stopped until it is started: no request wakes it."""
        return await self._wish(user_id, STOPPED, actor=actor)

    async def suspend(self, user_id: str, *, actor: str) -> Machine:
        """As `stop`, with its memory kept."""
        return await self._wish(user_id, SUSPENDED, actor=actor)

    async def update(self, user_id: str, *, actor: str) -> Machine:
        """What the template and the user's plan say by now: image, size, environment. It boots again if anything differs."""
        return await self._wish(user_id, "", actor=actor)

    async def rotate(self, user_id: str, *, actor: str) -> Machine:
        """A new gateway token; the old one holds until the machine has the new one."""
        return await self._wish(user_id, "", rotates=True, actor=actor)

    async def deprovision(self, user_id: str, *, actor: str) -> Machine:
        """Nothing of it any more but the ledger. Its gateway token is refused from now on. Twice is no error.

        Raises NoMachineError.
        """
        for _ in range(WISHES_MAX):
            machine = await self._existing(user_id)
            if machine.status in {GONE, DEPROVISIONING}:
                return machine
            revoking = self.instances.revoking(user_id)
            if await self.instances.wish(
                machine.instance, GONE, *revoking, status=DEPROVISIONING, actor=actor
            ):
                return await self._existing(user_id)
        raise _overtaken()

    async def _wish(
        self, user_id: str, desired: str, *, status: str = "", rotates: bool = False, actor: str
    ) -> Machine:
        """Raises NoMachineError; MachineError: it was never ready, or is going."""
        for _ in range(WISHES_MAX):
            machine = await self._existing(user_id)
            one = machine.instance
            if one.status in {GONE, DEPROVISIONING}:
                raise NoMachineError(f"{user_id} has no machine: it is {one.status}")
            if one.ready_at_ms is None:
                raise MachineError(f"The machine was never ready (it is {one.status}): provision it first.")
            if await self.instances.wish(
                one, desired or one.desired, status=status or _begun(one), rotates=rotates, actor=actor
            ):
                return await self._existing(user_id)
        raise _overtaken()

    async def _existing(self, user_id: str) -> Machine:
        machine = await self.of(user_id)
        if machine is None:
            raise NoMachineError(f"{user_id} has no machine")
        return machine

    async def store_id(self) -> str:
        """What machines say of the store on whose record they are: another deployment's, or one that was restored from another
        copy, has another."""
        return hmac.digest(await self._key.get(), b"store", hashlib.sha256).hex()[:STORE_ID_CHARS]

    # --- reached ---------------------------------------------------------------------------------

    async def ticket_key(self, instance: Instance) -> str:
        """What the machine knows tickets by: one key for each of a user's machines, made from one that is kept."""
        said = f"{instance.user_id}\0{instance.generation}".encode()
        return hmac.digest(await self._key.get(), said, hashlib.sha256).hex()

    async def ticket(self, machine: Machine) -> tuple[str, int]:
        """A signed ticket to a machine (a JSON Web Token, HS256) and until when it holds, in UTC milliseconds.

        It says `sub` (the user), `aud` (the app), `iat`, `exp` and `jti`, and no more: the gateway token stays out of addresses.
        """
        one, now_ms = machine.instance, self._clock.now_ms()
        until_s = now_ms // 1000 + TICKET_VALID_S
        claims = {
            "sub": one.user_id,
            "aud": one.app_name,
            "iat": now_ms // 1000,
            "exp": until_s,
            "jti": new_id("tkt", now_ms),
        }
        said = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
        key = bytes.fromhex(await self.ticket_key(one))
        mac = hmac.digest(key, said.encode(), hashlib.sha256)
        return f"{said}.{_encoded(mac)}", until_s * 1000


def not_started() -> dict[str, Any]:
    """What is told of a user for whom no machine was ever wished."""
    return {"status": NOT_STARTED, "error": None, "url": None, "machine": None}


def _begun(one: Instance) -> str:
    """The status while a wish is worked on: a machine that is ready stays so, one that was given up is begun again."""
    return STARTING if one.status == ERROR else one.status


def _overtaken() -> Refused:
    return Refused(
        Reason.STORE_UNAVAILABLE, "The machine's wishes change too often: try again.", retry_after_s=1
    )


def _part(value: dict[str, Any]) -> str:
    return _encoded(orjson.dumps(value))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
