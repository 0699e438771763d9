"""What a user's machine has at other vendors than Fly: a browser's context at Browserbase, a mailbox at AgentMail.

A pod or a mailbox that is made again is the original, by its `client_id`; it is the home that the proxy makes of the same user.
Contexts have unique names and no list: nobody learns the id of one whose answer was lost.
"""

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from metering.objects import ObjectId
from metering.values import immutable
from provisioning.errors import AgainError, Code, FatalError, ProvisioningError

CALL_TIMEOUT_S = 30.0
"""For one call, its connection and its answer: the vendors answer within seconds."""
ANSWER_BYTES_MAX = 64 * 1024
"""Every answer that is read here is one object of some hundred bytes."""
CONNECTIONS_MAX = 20
AFTER_MAX_S = 300.0
"""The longest that a vendor may ask us to wait."""
QUOTED_CHARS_MAX = 200
"""Of a vendor's words in an error."""

_ID = re.compile(r"(?!\.{1,2}$)[!-~]{1,320}")
"""An id that may stand in a path and in a machine's environment. The longest address of mail has 320 characters."""
_KEY = re.compile(r"[!-~]+")
_WAITS = frozenset({408, 409, 425, 429})
"""The same may be taken later. AgentMail answers 409 while the same is being made."""
_MAY_BE_MENDED = frozenset({402, 403})
"""Refusals of our account as it is now: its plan, its limits, what its key may."""
_NOT_FOUND, _CONFLICT, _FORBIDDEN = 404, 409, 403
_NOT_EMPTY = "cannot_delete"
"""AgentMail's code for a pod with inboxes."""


class NameTakenError(Exception):
    """A context of that name exists, and nobody can say which it is."""


@immutable
class Vendor:
    """Where a vendor's API is, and the operator's key there."""

    base_url: str
    api_key: str = field(repr=False)


def context_object(context_id: str) -> ObjectId:
    """What the user must own to use it through the proxy, spelt as the routes do; so are the two below."""
    return ObjectId("browserbase", "context", context_id)


def pod_object(pod_id: str) -> ObjectId:
    return ObjectId("agentmail", "pod", pod_id)


def inbox_object(inbox_id: str) -> ObjectId:
    return ObjectId("agentmail", "inbox", inbox_id.lower())


class Integrations:
    """Raises AgainError(PROVIDER_UNAVAILABLE): it may have been done all the same; FatalError(MAIL_REFUSED, BROWSER_REFUSED,
    PROVIDER_UNAUTHORIZED). `None` for a vendor: it is not configured, and not to be asked."""

    def __init__(
        self,
        *,
        browser: Vendor | None,
        mail: Vendor | None,
        project_id: str,
        client: httpx.AsyncClient,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self.has_browser = browser is not None
        self.has_mail = mail is not None
        self._project = {"projectId": project_id} if project_id else {}
        self._browser: _Api | None = None
        self._mail: _Api | None = None
        if browser is not None:
            headers = {"x-bb-api-key": browser.api_key}
            self._browser = _Api(client, browser, "Browserbase", headers, Code.BROWSER_REFUSED, timeout_s)
        if mail is not None:
            headers = {"authorization": f"Bearer {mail.api_key}"}
            self._mail = _Api(client, mail, "AgentMail", headers, Code.MAIL_REFUSED, timeout_s)

    async def make_context(self, name: str) -> str:
        """Its id. Raises NameTakenError: one of that name exists, and nobody can say which it is."""
        answer = await self._browsers.send("POST", "/v1/contexts", {"name": name, **self._project})
        if answer.status == _CONFLICT:
            raise NameTakenError(f"there is a context named {name} already")
        return self._browsers.id_in(answer, "id")

    async def delete_context(self, context_id: str) -> None:
        """Also when it is not there."""
        await self._browsers.delete(f"/v1/contexts/{_quoted(context_id)}")

    async def make_pod(self, tag: str) -> str:
        """The original if there is one."""
        answer = await self._mails.send("POST", "/v0/pods", {"name": tag, "client_id": tag})
        self._mails.expect(answer, {"client_id": tag})
        return self._mails.id_in(answer, "pod_id")

    async def make_inbox(self, pod_id: str, tag: str) -> str:
        """The address in lower case; the original if there is one."""
        client_id = f"{tag}-home"
        answer = await self._mails.send(
            "POST", f"/v0/pods/{_quoted(pod_id)}/inboxes", {"client_id": client_id}
        )
        self._mails.expect(answer, {"client_id": client_id, "pod_id": pod_id})
        return self._mails.id_in(answer, "inbox_id").lower()

    async def delete_inbox(self, inbox_id: str) -> None:
        """Also when it is not there."""
        await self._mails.delete(f"/v0/inboxes/{_quoted(inbox_id)}")

    async def delete_pod(self, pod_id: str) -> bool:
        """Also when it is not there. False: it is not empty, and stays."""
        answer = await self._mails.send("DELETE", f"/v0/pods/{_quoted(pod_id)}")
        if answer.status == _FORBIDDEN and answer.told("code") == _NOT_EMPTY:
            return False
        self._mails.check(answer, may_be_absent=True)
        return True

    @property
    def _browsers(self) -> "_Api":
        assert self._browser is not None, "no Browserbase is configured: ask has_browser first"
        return self._browser

    @property
    def _mails(self) -> "_Api":
        assert self._mail is not None, "no AgentMail is configured: ask has_mail first"
        return self._mail


@immutable
class _Answer:
    asked: str
    status: int
    fields: Mapping[str, Any] | None
    """Of the JSON object in it, none where it is empty; None: it is something else."""
    after_s: float | None

    def told(self, name: str) -> Any:
        return (self.fields or {}).get(name)


class _Api:
    """One vendor's API. Nothing that it raises holds the key."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        client: httpx.AsyncClient,
        vendor: Vendor,
        name: str,
        headers: Mapping[str, str],
        refused: Code,
        timeout_s: float,
    ) -> None:
        if not _KEY.fullmatch(vendor.api_key):
            raise ValueError(f"the key of {name} is empty, or has characters that a header may not have")
        self._client = client
        self._base_url = vendor.base_url.rstrip("/")
        self._key = vendor.api_key
        self._name = name
        self._headers = {**headers, "accept-encoding": "identity"}
        self._refused = refused
        self._timeout_s = timeout_s

    async def send(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> _Answer:
        """The answer, whatever it says. Raises AgainError where there is none."""
        asked = f"{method} {path}"
        content = None if fields is None else orjson.dumps(fields)
        headers = self._headers if content is None else {**self._headers, "content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    method,
                    self._base_url + path,
                    content=content,
                    headers=headers,
                    follow_redirects=False,
                    timeout=self._timeout_s,
                ) as answer,
            ):
                body = await _body(answer)
        except TimeoutError:
            raise self._again(f"did not answer {asked} within {self._timeout_s:g} s") from None
        except httpx.HTTPError as failure:  # its words may hold what was sent
            words = self._without_key(str(failure)) or "no reason given"
            raise self._again(f"did not answer {asked}: {type(failure).__name__}, {words}") from None
        return _Answer(asked, answer.status_code, _object(body), _after_s(answer))

    async def delete(self, path: str) -> None:
        self.check(await self.send("DELETE", path), may_be_absent=True)

    def check(self, answer: _Answer, *, may_be_absent: bool = False) -> None:
        """Raises what an answer means that is no success."""
        status = answer.status
        if may_be_absent and status == _NOT_FOUND:
            return
        if httpx.codes.is_success(status):
            if answer.fields is None:  # whoever says so is not the vendor
                raise self._again(f"answered {answer.asked} with what it does not say")
            return
        told = f"answered {answer.asked} with {status}: {self._words(answer)}"
        if httpx.codes.is_server_error(status) or status in _WAITS:
            raise self._again(told, after_s=answer.after_s)
        if status == httpx.codes.UNAUTHORIZED:
            raise FatalError(Code.PROVIDER_UNAUTHORIZED, f"{self._name} {told}", helps_later=True)
        raise self._refusal(told, helps_later=status in _MAY_BE_MENDED)

    def id_in(self, answer: _Answer, name: str) -> str:
        """Of what was made. Without one it may have been made all the same."""
        self.check(answer)
        found = answer.told(name)
        if not isinstance(found, str) or not _ID.fullmatch(found):
            raise self._again(f"answered {answer.asked} without a {name}")
        return found

    def expect(self, answer: _Answer, told: Mapping[str, str]) -> None:
        """What is not made anew says whose it is. Raises FatalError where that is another's."""
        self.check(answer)
        for name, value in told.items():
            if answer.told(name) not in (None, value):
                raise self._refusal(f"answered {answer.asked} with what is not of {name} {value}")

    def _again(self, told: str, *, after_s: float | None = None) -> ProvisioningError:
        return AgainError(Code.PROVIDER_UNAVAILABLE, f"{self._name} {told}", after_s=after_s)

    def _refusal(self, told: str, *, helps_later: bool = False) -> ProvisioningError:
        return FatalError(self._refused, f"{self._name} {told}", helps_later=helps_later)

    def _words(self, answer: _Answer) -> str:
        said = answer.told("message")
        return self._without_key(said)[:QUOTED_CHARS_MAX] if isinstance(said, str) and said else "no message"

    def _without_key(self, said: str) -> str:
        """A vendor may quote what it was sent."""
        return said.replace(self._key, "[key]")


async def _body(answer: httpx.Response) -> bytes | None:
    """As it comes; None: it is too long."""
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            return None
    return bytes(body)


def _object(body: bytes | None) -> Mapping[str, Any] | None:
    if not body:
        return None if body is None else {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _after_s(answer: httpx.Response) -> float | None:
    """How long the vendor asks us to wait, where it says so in seconds."""
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), AFTER_MAX_S) if math.isfinite(seconds) else None


def _quoted(upstream_id: str) -> str:
    return quote(upstream_id, safe="")


@asynccontextmanager
async def vendor_client(*base_urls: str) -> AsyncIterator[httpx.AsyncClient]:
    """For vendors alone: it follows no redirects, keeps no cookies, and heeds no proxy of the environment's.

    The machine's certificates, which cost 20 ms to read, are trusted where an address needs them, else none."""
    needs_trust = any(url.lower().startswith("https:") for url in base_urls)
    async with httpx.AsyncClient(
        verify=ssl.create_default_context() if needs_trust else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        timeout=httpx.Timeout(CALL_TIMEOUT_S),
        limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield client
