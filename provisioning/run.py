"""What the steps of one run share: the claim under which they write, what is on record, what the machine should be."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from metering.clock import Clock
from metering.hooks import hook_token
from metering.objects import (
    BIND_OBJECT,
    OWNED_BY_ANOTHER,
    NoSuchObjectError,
    ObjectId,
    Objects,
    ObjectsError,
    owned,
)
from metering.store.store import Store
from metering.store.writer import Step
from metering.users import Directory, hash_of
from metering.values import immutable
from provisioning import names
from provisioning.errors import AgainError, Code, FatalError
from provisioning.fly import Fly, Machine
from provisioning.instances import (
    CONTEXT,
    GONE,
    INBOX,
    READY,
    RUNNING,
    STOPPED,
    SUSPENDED,
    VOLUME,
    Claim,
    DeclinedError,
    Instance,
    Resource,
)
from provisioning.integrations import Integrations
from provisioning.machines import Machines
from provisioning.template import MachineTemplate, TemplateError, Templates

PLACEMENTS_PER_REGION = 2
"""Places tried in a region before the next one, where hosts and not the region are full."""
PATIENCE_S = 300.0
"""For a machine to boot, and again for what runs in it to answer."""
OFF = frozenset({"stopped", "suspended"})
FAILED = frozenset({"failed", "launch_failed"})
MADE_FOR = "machine:"
"""Instead of the request that handed an object out."""
USER, GENERATION, STORE = "automna_user", "automna_generation", "automna_store"
"""A machine's metadata by which we know whose it is, and on whose record."""
TOKEN = "OPENCLAW_GATEWAY_TOKEN"


@immutable
class Parts:
    """What every run stands on. `proxy_url`: where the machines find this service; `hooks_secret`: empty, agents are told of nothing.
    `probes`: asks gateways."""

    store: Store
    clock: Clock
    machines: Machines
    directory: Directory
    objects: Objects
    fly: Fly
    integrations: Integrations
    templates: Templates
    probes: httpx.AsyncClient
    image: str
    proxy_url: str
    project_id: str
    hooks_secret: str
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: random.Random = random.Random()  # noqa: S311 - no secret


class Run:
    """What the steps of one run share."""

    def __init__(self, parts: Parts, claim: Claim) -> None:
        self.parts = parts
        self.claim = claim
        self.resources: list[Resource] = []
        self.template: MachineTemplate
        self.machine: Machine
        """Once the machine step is done, as it was last seen."""
        self.secret = ""
        """Of the gateway token in it."""
        self.is_new = False
        """It was made in this run."""
        self.is_changed = False
        """It was given another configuration in this run."""
        self.seen: Machine | None = None
        """As it was last told, at whatever step."""
        self.store_id = ""

    @property
    def instance(self) -> Instance:
        return self.claim.instance

    @property
    def goes_away(self) -> bool:
        return bool(self.instance.is_undone) or self.instance.desired == GONE

    @property
    def region(self) -> str:
        """Where the machine is, or is to be tried next."""
        tried = self.instance.placements // PLACEMENTS_PER_REGION
        return self.instance.region or self.template.regions[tried % len(self.template.regions)]

    @property
    def hook_url(self) -> str:
        return f"{self.parts.machines.url_of(self.instance.app_name)}/hooks/agent"

    async def load(self) -> None:
        user = await self.parts.directory.user(self.instance.user_id)
        self.template = self.parts.templates.of(user.plan_at(self.parts.clock.now_ms()))
        self.resources = await self.claim.resources()
        self.store_id = await self.parts.machines.store_id()

    def app_names(self) -> list[str]:
        """The name it has or was to have, and those after it."""
        possible = self.parts.machines.app_names(self.instance.user_id)
        return (
            possible[possible.index(self.instance.app_name) :]
            if self.instance.app_name in possible
            else possible
        )

    def live(self, kind: str, name: str = "") -> Resource | None:
        """What there is of a kind, on record."""
        return self._one("live", kind, name)

    def open_one(self, kind: str, name: str = "") -> Resource:
        """What may be there of a kind."""
        found = self._one("intent", kind, name)
        assert found is not None
        return found

    def _one(self, state: str, kind: str, name: str) -> Resource | None:
        return next(
            (
                one
                for one in self.resources
                if one.state == state and one.kind == kind and name in ("", one.name)
            ),
            None,
        )

    def is_ours(self, found: Machine) -> bool:
        """It says that it is this user's, on this store's record."""
        whose = names.user_hash(self.instance.user_id), self.store_id
        return (found.metadata.get(USER), found.metadata.get(STORE)) == whose

    def is_proved(self, found: Machine) -> bool:
        """The user may go in, and this version of it was seen answering."""
        return self.instance.status == READY and self.instance.answered_version == found.version

    @property
    def still_serves(self) -> bool:
        """A failure left it as it was: at rest, or with the version running that was seen answering. One that was to rest may be
        cordoned already."""
        one, seen = self.instance, self.seen
        if one.status in {STOPPED, SUSPENDED}:
            return True
        is_same = seen is None or (seen.version == one.answered_version and seen.state not in FAILED)
        return one.status == READY and one.aim == RUNNING and is_same

    def rests(self, found: Machine) -> bool:
        """It is off and shall be: because that is wished, or because it sleeps until somebody asks."""
        is_off = found.state in OFF
        if self.instance.aim in {STOPPED, SUSPENDED}:
            return is_off or self.instance.ready_at_ms is not None
        return is_off and self.instance.status == READY

    # on record

    async def record(
        self, *steps: Step, event: str = "", details: dict[str, Any] | None = None, **fields: Any
    ) -> None:
        """Under the claim, and while the same is wished. Raises SupersededError, DeclinedError (a step's refusal)."""
        await self.claim.write(*steps, event=event, details=details, **fields)
        if steps:
            self.resources = await self.claim.resources()

    async def begin(self, status: str, *steps: Step, **fields: Any) -> None:
        """A stage, with the rows of what it may make. A machine that is ready stays so while it is changed."""
        shown = self.instance.status if self.instance.status == READY else status
        is_new = shown != self.instance.status
        patience: dict[str, Any] = {"patience_ms": None} if is_new else {}
        await self.record(*steps, event=shown if is_new else "", status=shown, **patience, **fields)

    async def made(
        self, kind: str, name: str, upstream_id: str, *, bound: ObjectId | None = None, **fields: Any
    ) -> None:
        """It is there; `bound`: and the user's, so that the agent may use it through the proxy. True whatever is wished."""
        now_ms, one = self.parts.clock.now_ms(), self.instance
        steps = [self.claim.making(kind, name, upstream_id)]
        if bound is not None:
            params = (*bound, one.user_id, f"{MADE_FOR}{kind}", now_ms)
            steps.append(Step(BIND_OBJECT, params, refusal=OWNED_BY_ANOTHER))
        try:
            await self.claim.write_whatever_is_wished(
                *steps, event=f"{kind}_made", details={"name": name, "id": upstream_id}, **fields
            )
        except DeclinedError as error:
            raise FatalError(Code.NOT_OURS, f"{kind} {upstream_id} is another user's") from error
        self.resources = await self.claim.resources()

    async def was_made_for_it(self, one: ObjectId, *, is_bound: bool) -> bool:
        """Whether it may go with the machine: not what its user had before, nor what is another's by now. `is_bound`: it was on
        record as the user's; what is on nobody's now was taken from them."""
        try:
            found = await owned(self.parts.store.readers, one)
        except NoSuchObjectError:
            return not is_bound
        return found.user_id == self.instance.user_id and found.reservation_id.startswith(MADE_FOR)

    async def lose(self, one: Resource) -> None:
        """Nobody can say whether it is there, or take it away: that stays on record."""
        await self.record(
            self.claim.ending(one, is_lost=True), event=f"{one.kind}_lost", details={"name": one.name}
        )

    async def forget(self, one: ObjectId) -> None:
        """Nobody's any more, on every worker. Raises AgainError while the user has requests under way."""
        try:
            await self.parts.objects.release(one, self.instance.user_id)
        except NoSuchObjectError:
            return
        except ObjectsError as error:
            raise AgainError(Code.PROVIDER_UNAVAILABLE, str(error)) from error

    async def patience(self, seconds: float) -> int:
        """Until when what is waited for now may take: the same instant for all who wait for it, one after the other."""
        now_ms, until_ms = self.parts.clock.now_ms(), self.instance.patience_ms
        # None is as long as that: the clock was set back since.
        if until_ms is None or until_ms > now_ms + round(PATIENCE_S * 1000):
            await self.record(patience_ms=now_ms + round(seconds * 1000))
        else:
            await self.record()  # whoever waits hears what is wished meanwhile
        assert self.instance.patience_ms is not None
        return self.instance.patience_ms

    # configured

    async def config(self, secret: str) -> dict[str, Any]:
        """The whole configuration that the machine should have, with that token."""
        one, volume_row = self.instance, self.live(VOLUME)
        assert volume_row is not None
        assert volume_row.upstream_id is not None
        context, inbox = self.live(CONTEXT), self.live(INBOX)
        values = {
            "gateway_token": secret,
            "proxy": self.parts.proxy_url,
            "project_id": self.parts.project_id if context is not None else "",
            "context_id": "" if context is None else context.upstream_id or "",
            "inbox_id": "" if inbox is None else inbox.upstream_id or "",
            "ticket_key": await self.parts.machines.ticket_key(one),
            "hook_token": hook_token(self.parts.hooks_secret, one.user_id) if self.parts.hooks_secret else "",
        }
        metadata = {
            USER: names.user_hash(one.user_id),
            GENERATION: str(one.generation),
            STORE: self.store_id,
        }
        try:
            return self.template.config(
                {name: value for name, value in values.items() if value},
                image=self.parts.image,
                volume_id=volume_row.upstream_id,
                metadata=metadata,
            )
        except TemplateError as error:  # one of the operator's, which wants what this machine has not
            raise FatalError(Code.NOT_CONFIGURED, str(error), helps_later=True) from error

    async def secret_of(self, found: Machine) -> str | None:
        """The gateway token in a machine's environment, if it is the one that it should have and lives."""
        secret = str(((found.config or {}).get("env") or {}).get(TOKEN) or "")
        known = await self.parts.directory.credential(hash_of(secret)) if secret else None
        if known is None or known.token_id != self.instance.token_id:
            return None
        now_ms = self.parts.clock.now_ms()
        is_dead = known.revoked_at_ms is not None or (known.expires_at_ms or now_ms + 1) <= now_ms
        return None if is_dead else secret
