"""Fly's Machines API, as far as an agent's machine needs it, and what its refusals mean.

Facts from Fly's OpenAPI document, its documentation and its own clients (2026-08). Every call is one request: nothing is tried again
here. Whether a call that failed did its work is not known; whoever called looks before it calls again.
"""

import asyncio
import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from metering.values import immutable
from provisioning.pacing import DELETE_APP, GET_MACHINE, PER_THING, Pacer, Rate

TIMEOUT_S = 30.0
WAIT_S_MAX = 60
"""Fly's longest wait."""
CONNECTIONS_MAX = 64
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""A page of the organization's machines, 1,000 of them, is below two."""
PAGES_MAX = 1_000
RETRY_AFTER_S_MAX = 60.0
NONCE = "fly-machine-lease-nonce"
LEAVING = frozenset(
    {"scheduling_destroy", "pending_destroy", "waiting_for_detach", "destroying", "fork_cleanup", "destroyed"}
)
"""States of a volume that is gone, or will be: listed for a day."""
QUOTED_CHARS = 300
"""Of an answer's words, in our log."""
SECRET_CHARS_MIN = 16
"""What is shorter is no secret, and may stand in any words."""


class Trouble(enum.Enum):
    """What a failure of Fly means for who asked."""

    AGAIN = "again"
    """It may go better later; whether it was done is not known (no answer, 408, 429, 5xx, a change by another)."""
    LEASED = "leased"
    """Another holds the machine's lease."""
    NO_ROOM_IN_REGION = "no_room_in_region"
    NO_ROOM_ON_HOST = "no_room_on_host"
    """With another volume, which may lie elsewhere in the region, there may be room."""
    EXISTS = "exists"
    """Something of that name is there already."""
    FOREIGN = "foreign"
    """It is another organization's."""
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    """For what we asked: the same again is refused again."""


class FlyError(Exception):
    """A call that did not come to its end. `status`: None without an answer."""

    def __init__(
        self, trouble: Trouble, words: str, *, status: int | None, after_s: float | None = None
    ) -> None:
        super().__init__(words)
        self.trouble = trouble
        self.status = status
        self.after_s = after_s


@immutable
class Volume:
    """One that exists."""

    id: str
    name: str
    region: str
    machine_id: str | None
    created_at: str
    """RFC 3339, of Fly's clock."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Volume":
        return cls(
            told["id"],
            told.get("name") or "",
            told.get("region") or "",
            told.get("attached_machine_id") or None,
            told.get("created_at") or "",
        )


@immutable
class Machine:
    """One as Fly tells of it. `config` is None where its host cannot be asked for it; `version` changes with each configuration."""

    id: str
    app_name: str
    name: str
    state: str
    region: str
    version: str
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    updated_at: str
    """RFC 3339, of Fly's clock."""

    @classmethod
    def of(cls, told: Mapping[str, Any], app_name: str = "") -> "Machine":
        known = told.get("config") or told.get("incomplete_config") or {}
        is_whole = told.get("host_status", "ok") == "ok" and "config" in told
        return cls(
            id=told["id"],
            app_name=told.get("app_name") or app_name,
            name=told.get("name") or "",
            state=told.get("state") or "",
            region=told.get("region") or "",
            version=told.get("instance_id") or "",
            config=told["config"] if is_whole else None,
            metadata=known.get("metadata") or {},
            updated_at=told.get("updated_at") or "",
        )


@immutable
class App:
    """One of our organization's."""

    name: str
    network: str


class Fly:
    """The calls. `client` has the base address and the token; everything raises FlyError."""

    def __init__(self, client: httpx.AsyncClient, pacer: Pacer, *, org_slug: str) -> None:
        self._client = client
        self._pacer = pacer
        self._org_slug = org_slug

    # --- apps ------------------------------------------------------------------------------------

    async def app(self, name: str) -> App | None:
        """None: the name is free. FOREIGN: somebody else has it."""
        told = await self._found("GET", f"/apps/{name}", "app", name)
        return None if told is None else App(str(told.get("name") or name), str(told.get("network") or ""))

    async def create_app(self, name: str, network: str) -> None:
        """EXISTS: somebody has the name, perhaps we."""
        fields = {"name": name, "org_slug": self._org_slug, "network": network}
        await self._call("POST", "/apps", "apps", name, fields)

    async def delete_app(self, name: str) -> None:
        """With its machines, volumes and addresses; also when it is not there. It may be seen for a while yet."""
        await self._found("DELETE", f"/apps/{name}?force=true", "delete app", "", rate=DELETE_APP)

    async def apps(self) -> list[str]:
        """The names of all that the organization has."""
        told = await self._call("GET", f"/apps?org_slug={quote(self._org_slug)}", "org apps", "")
        return [str(one["name"]) for one in told.get("apps") or ()]

    async def addresses(self, app_name: str) -> list[Mapping[str, Any]]:
        """`ip`, `shared`, ... of each that the app has."""
        told = await self._call("GET", f"/apps/{app_name}/ip_assignments", "ips", app_name)
        return list(told.get("ips") or ())

    async def assign_address(self, app_name: str, kind: str) -> str:
        """`shared_v4` or `v6`. EXISTS, REFUSED: there may be one of that kind already."""
        told = await self._call(
            "POST", f"/apps/{app_name}/ip_assignments", "assign ip", app_name, {"type": kind}
        )
        return str(told.get("ip") or "")

    # --- volumes ---------------------------------------------------------------------------------

    async def volumes(self, app_name: str) -> list[Volume]:
        """Those that exist, the oldest first."""
        told = await self._call("GET", f"/apps/{app_name}/volumes", "volumes", app_name)
        lasting = [one for one in told if one.get("state") not in LEAVING]
        return [Volume.of(one) for one in sorted(lasting, key=lambda one: str(one.get("created_at")))]

    async def volume(self, app_name: str, volume_id: str) -> Volume | None:
        """None: it is not there, or no more."""
        told = await self._found("GET", f"/apps/{app_name}/volumes/{volume_id}", "volume", app_name)
        return None if told is None or told.get("state") in LEAVING else Volume.of(told)

    async def create_volume(
        self, app_name: str, name: str, *, region: str, size_gb: int, guest: Mapping[str, Any]
    ) -> Volume:
        """Names are not unique: each call makes another one. `guest`: what shall run there, so that there is room for it."""
        fields = {"name": name, "region": region, "size_gb": size_gb, "encrypted": True, "compute": guest}
        return Volume.of(
            await self._call("POST", f"/apps/{app_name}/volumes", "create volume", app_name, fields)
        )

    async def delete_volume(self, app_name: str, volume_id: str) -> None:
        """Also when it is not there."""
        await self._found("DELETE", f"/apps/{app_name}/volumes/{volume_id}", "delete volume", app_name)

    # --- machines --------------------------------------------------------------------------------

    async def machines(self, app_name: str) -> list[Machine]:
        """Those that exist."""
        told = await self._call("GET", f"/apps/{app_name}/machines", "machines", app_name)
        found = [Machine.of(one, app_name) for one in told]
        return [one for one in found if one.state not in {"destroyed", "destroying"}]

    async def machine(self, app_name: str, machine_id: str) -> Machine | None:
        """None: it is not there, or no more."""
        told = await self._found(
            "GET", f"/apps/{app_name}/machines/{machine_id}", "machine", machine_id, rate=GET_MACHINE
        )
        found = None if told is None else Machine.of(told, app_name)
        return None if found is None or found.state in {"destroyed", "destroying"} else found

    async def create_machine(
        self, app_name: str, name: str, *, region: str, config: Mapping[str, Any]
    ) -> Machine:
        """It boots at once. EXISTS: one of that name is there."""
        fields = {"name": name, "region": region, "config": config}
        told = await self._call("POST", f"/apps/{app_name}/machines", "create machine", app_name, fields)
        return Machine.of(told, app_name)

    async def update_machine(
        self, machine: Machine, config: Mapping[str, Any], nonce: str, *, launches: bool
    ) -> Machine:
        """The whole configuration in place of the one that was read with `machine`. One that runs boots again; without
        `launches`, one that is off stays off."""
        fields = {"config": config, "current_version": machine.version, "skip_launch": not launches}
        told = await self._call("POST", _path(machine), "update", machine.id, fields, nonce=nonce)
        return Machine.of(told, machine.app_name)

    async def destroy_machine(self, machine: Machine) -> None:
        """At once, also when it runs, or is not there."""
        await self._found("DELETE", f"{_path(machine)}?force=true", "destroy", machine.id)

    async def start(self, machine: Machine) -> None:
        await self._call("POST", f"{_path(machine)}/start", "start", machine.id)

    async def stop(self, machine: Machine) -> None:
        await self._call("POST", f"{_path(machine)}/stop", "stop", machine.id, {})

    async def suspend(self, machine: Machine) -> None:
        await self._call("POST", f"{_path(machine)}/suspend", "suspend", machine.id)

    async def cordon(self, machine: Machine) -> None:
        """No request reaches it, or wakes it, any more."""
        await self._call("POST", f"{_path(machine)}/cordon", "cordon", machine.id)

    async def uncordon(self, machine: Machine) -> None:
        await self._call("POST", f"{_path(machine)}/uncordon", "uncordon", machine.id)

    async def wait(self, machine: Machine, *states: str, timeout_s: float) -> bool:
        """Whether this version of it is in one of these states within `timeout_s`, WAIT_S_MAX at most."""
        query = "&".join(f"state={state}" for state in states)
        query += f"&timeout={max(1, min(round(timeout_s), WAIT_S_MAX))}&version={quote(machine.version)}"
        try:
            await self._call(
                "GET", f"{_path(machine)}/wait?{query}", "wait", machine.id, timeout_s=TIMEOUT_S + timeout_s
            )
        except FlyError as error:
            if error.status == httpx.codes.REQUEST_TIMEOUT:
                return False
            raise
        return True

    @asynccontextmanager
    async def leased(self, machine: Machine, *, ttl_s: int) -> AsyncIterator[str]:
        """The right to change a machine alone: its nonce. It ends with the context, or by itself after `ttl_s`."""
        fields = {"ttl": ttl_s, "description": "automna-proxy"}
        told = await self._call("POST", f"{_path(machine)}/lease", "lease", machine.id, fields)
        nonce, is_cut = str((told.get("data") or {}).get("nonce") or ""), False
        try:
            yield nonce
        except asyncio.CancelledError:  # whoever stops does not wait for Fly
            is_cut = True
            raise
        finally:
            if not is_cut:
                with suppress(FlyError):
                    await self._found(
                        "DELETE", f"{_path(machine)}/lease", "end lease", machine.id, nonce=nonce
                    )

    # --- the organization ------------------------------------------------------------------------

    async def org_machines(self) -> list[Machine]:
        """All that exist, with little of their configurations."""
        found = [Machine.of({**one, "host_status": ""}) for one in await self._pages("machines")]
        return [one for one in found if one.state not in {"destroyed", "destroying"}]

    async def org_volumes(self) -> list[tuple[str, Volume]]:
        """All that exist, each with its app's name."""
        told = await self._pages("volumes")
        return [(str(one.get("app_name")), Volume.of(one)) for one in told if one.get("state") not in LEAVING]

    async def _pages(self, kind: str) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        cursor = ""
        for _ in range(PAGES_MAX):
            query = f"?cursor={quote(cursor)}" if cursor else ""
            told = await self._call("GET", f"/orgs/{quote(self._org_slug)}/{kind}{query}", f"org {kind}", "")
            found += told.get(kind) or ()
            cursor = str(told.get("next_cursor") or "")
            if not cursor:
                break
        return found

    # --- one request -----------------------------------------------------------------------------

    async def _found(
        self, method: str, path: str, action: str, thing: str, *, rate: Rate = PER_THING, nonce: str = ""
    ) -> Any:
        """As `_call`; None where there is nothing."""
        try:
            return await self._call(method, path, action, thing, rate=rate, nonce=nonce)
        except FlyError as error:
            if error.trouble is Trouble.NOT_FOUND:
                return None
            raise

    async def _call(
        self,
        method: str,
        path: str,
        action: str,
        thing: str,
        fields: Mapping[str, Any] | None = None,
        *,
        rate: Rate = PER_THING,
        nonce: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        """The answer's JSON, {} without any. `action` on `thing` is what Fly counts."""
        await self._pacer.wait(action, thing, rate)
        headers = {NONCE: nonce} if nonce else {}
        if fields is not None:
            headers["content-type"] = "application/json"
        body = None if fields is None else orjson.dumps(fields)
        try:
            async with asyncio.timeout(timeout_s):  # the client's own is for each read
                async with self._client.stream(
                    method, f"/v1{path}", content=body, headers=headers, timeout=timeout_s
                ) as answer:
                    said = await _read(answer)
        except (httpx.HTTPError, TimeoutError) as error:
            words = f"{method} {path}: {type(error).__name__}"
            raise FlyError(Trouble.AGAIN, words, status=None) from error
        if answer.is_success:
            return _parsed(said, f"{method} {path}")
        raise _error(answer, said, f"{method} {path}", self._secrets_in(fields or {}))

    def _secrets_in(self, fields: Mapping[str, Any]) -> list[str]:
        """What nobody may read of what was sent, the longest first: our token, and what a machine is told by its environment."""
        credentials = self._client.headers.get("authorization", "").replace(",", " ").split()[1:]
        told = ((fields.get("config") or {}).get("env") or {}).values()
        return sorted(
            (one for one in (*credentials, *map(str, told)) if len(one) >= SECRET_CHARS_MIN),
            key=len,
            reverse=True,
        )


@asynccontextmanager
async def fly_client(base_url: str, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """For Fly alone: no redirects, no cookies, no proxy of the environment's. A token as `fly tokens create` shows it begins
    with its scheme, which is taken as it stands."""
    scheme, _, rest = token.strip().partition(" ")
    authorization = (
        f"{scheme} {rest}" if rest and scheme in {"FlyV1", "Bearer"} else f"Bearer {token.strip()}"
    )
    async with httpx.AsyncClient(
        base_url=base_url,
        headers={"authorization": authorization},
        timeout=TIMEOUT_S,
        limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield client


async def _read(answer: httpx.Response) -> bytes:
    said = bytearray()
    async for chunk in answer.aiter_bytes():
        said += chunk
        if len(said) > ANSWER_BYTES_MAX:
            raise FlyError(
                Trouble.REFUSED,
                f"an answer of more than {ANSWER_BYTES_MAX:,} bytes",
                status=answer.status_code,
            )
    return bytes(said)


def _parsed(said: bytes, what: str) -> Any:
    """Raises FlyError: what came is no JSON, so that nobody knows what was done."""
    try:
        return orjson.loads(said) if said else {}
    except orjson.JSONDecodeError as error:
        raise FlyError(Trouble.AGAIN, f"{what}: not JSON", status=None) from error


def _error(answer: httpx.Response, said: bytes, what: str, secrets: Sequence[str]) -> FlyError:
    """The error's own word wins over its text, and both over the status. Fly may quote what it was sent: not so we."""
    told: Any = None
    if said.startswith(b"{"):
        try:
            told = orjson.loads(said)
        except orjson.JSONDecodeError:
            told = None
    fields: Mapping[str, Any] = told if isinstance(told, dict) else {}
    text = str(fields.get("error") or fields.get("message") or "")
    trouble = _trouble(answer.status_code, str(fields.get("status") or ""), text)
    request_id = answer.headers.get("fly-request-id", "")
    for secret in secrets:
        text = text.replace(secret, "...")
    words = f"{what}: {answer.status_code} {text[:QUOTED_CHARS]}" + (f" ({request_id})" if request_id else "")
    return FlyError(trouble, words, status=answer.status_code, after_s=_after_s(answer))


_BY_WORD: Mapping[str, Trouble] = {
    "insufficient_capacity": Trouble.NO_ROOM_IN_REGION,
    "volume_placement_capacity": Trouble.NO_ROOM_ON_HOST,
    "name_taken": Trouble.EXISTS,
}
_BY_TEXT: Sequence[tuple[int, str, Trouble]] = (
    (409, "already_exists", Trouble.EXISTS),
    (422, "already been taken", Trouble.EXISTS),
    (409, "no capacity", Trouble.NO_ROOM_IN_REGION),
    (412, "insufficient resources", Trouble.NO_ROOM_ON_HOST),
    (409, "insufficient ", Trouble.NO_ROOM_ON_HOST),
    (409, "could not reserve resource", Trouble.NO_ROOM_ON_HOST),
    (409, "lease currently held", Trouble.LEASED),
)
"""Words that Fly's own clients look for."""
_BY_STATUS: Mapping[int, Trouble] = {
    401: Trouble.UNAUTHORIZED,
    403: Trouble.FOREIGN,
    404: Trouble.NOT_FOUND,
    408: Trouble.AGAIN,
    409: Trouble.AGAIN,
    412: Trouble.AGAIN,
    429: Trouble.AGAIN,
}
"""409 and 412 otherwise: another is changing it, or it is not in a state for that yet."""
FAILED = 500


def _trouble(status: int, word: str, text: str) -> Trouble:
    if word in _BY_WORD:
        return _BY_WORD[word]
    for of_status, words, trouble in _BY_TEXT:
        if status == of_status and words in text:
            return trouble
    if status >= FAILED:
        return Trouble.AGAIN
    return _BY_STATUS.get(status, Trouble.REFUSED)


def _after_s(answer: httpx.Response) -> float | None:
    """Seconds to wait, where the answer says so; it is not documented that it does."""
    text = answer.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_S_MAX) if text.isdecimal() else None


def _path(machine: Machine) -> str:
    return f"/apps/{machine.app_name}/machines/{machine.id}"
