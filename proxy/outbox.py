"""The outbox's messages on their way: signed webhooks (Standard Webhooks) to endpoints of the operator's. Knows
neither vendors nor what a message is about.

Every attempt sends the same bytes under the same `webhook-id`; timestamp and signature are the attempt's own. What
counts is the answer's status alone: 2xx is delivered, 410 (Gone) is given up at once, all else is tried again. The
answer's body is passed over, and a redirect is not followed: it would hand the message to somebody else.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Protocol

import httpx

from metering.clock import Clock
from metering.errors import Refused
from metering.hooks import HOOK, Hooks, hook_token
from metering.outbox import NO_ANSWER_KNOWN, OUTBOX_ATTEMPTS_MAX, Message, Outbox
from metering.values import immutable
from proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Between two looks for messages that are due."""
OUTBOX_AT_ONCE = 4
"""Attempts at once, of one process at one endpoint."""
ATTEMPT_TIMEOUT_S = 20.0
"""From connecting to the answer's status. OpenClaw answers within 15: who gave up before would not know whether it takes a
turn, and might come again when the message's id is forgotten."""
ANSWER_BYTES_MAX = 64 * 1024
"""Read of an answer's body, so that its connection can be used again; no more."""
ANSWER_REST_S = 1.0
"""For that."""
FORGET_EVERY_LOOKS = 600
NO_HOOK = "its agent has no hook any more"

GONE = 410
SECRET_PREFIX = "whsec_"
SECRETS_MAX = 2
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
"""As Standard Webhooks has it."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class EndpointError(ValueError):
    """An endpoint cannot be used; the message says what is expected, and shows no secret."""


class Destination(Protocol):
    """Where messages go."""

    @property
    def url(self) -> str: ...

    def headers(self, message: Message, at_s: int) -> dict[str, str]:
        """Of one attempt."""


@dataclass(frozen=True, slots=True, repr=False)
class AgentHook:
    """Where the agent of a user is told, and the token that it knows us by."""

    url: str
    token: str

    def headers(self, message: Message, at_s: int) -> dict[str, str]:
        """With the message's id, by which a repetition is known (OpenClaw: by `idempotency-key`)."""
        return {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            "idempotency-key": message.id,
            "user-agent": "automna-proxy",
            "webhook-id": message.id,
            "webhook-timestamp": str(at_s),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """Where messages go, and the keys that sign them: several while one replaces the other."""

    url: str
    keys: tuple[bytes, ...]

    def headers(self, message: Message, at_s: int) -> dict[str, str]:
        """Of one attempt."""
        signed = f"{message.id}.{at_s}.{message.body}".encode()
        digests = [hmac.digest(key, signed, hashlib.sha256) for key in self.keys]
        return {
            "content-type": "application/json",
            "user-agent": "automna-proxy",
            "webhook-id": message.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        }


def parse_url(given: str) -> str:
    """Raises EndpointError, which shows no more of it than scheme and host: the rest may be secret."""
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL:
        url = httpx.URL()
    is_sendable = given.isascii() and given.isprintable() and " " not in given and _is_host(url.host)
    if is_sendable and (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))):
        return given
    shown = f"{url.scheme}://{url.host}" if _is_host(url.host) else "something else"
    raise EndpointError(
        f"given {shown}, expected an address that begins with https://, or with http:// where its host is this machine "
        "(127.0.0.1, [::1], localhost)"
    )


def parse_secrets(given: str) -> tuple[bytes, ...]:
    """The keys. Raises EndpointError."""
    secrets = given.split()
    keys = [_key(secret) for secret in secrets]
    if not 1 <= len(keys) <= SECRETS_MAX or any(key is None for key in keys):
        raise EndpointError(
            f"expected {SECRET_PREFIX} and base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, as "
            f'`echo "{SECRET_PREFIX}$(openssl rand -base64 32)"` makes it; two of them, separated by a space, while one '
            "replaces the other (what was given is not shown)"
        )
    return tuple(key for key in keys if key is not None)


def _key(secret: str) -> bytes | None:
    if not secret.startswith(SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        return None
    return key if SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX else None


def _is_host(host: str) -> bool:
    return bool(_NAME.fullmatch(host)) or _address(host) is not None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@immutable
class _Answer:
    """What an attempt came to. `status` is None when there was no answer; `error` says what is wrong with it."""

    status: int | None
    error: str

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and httpx.codes.is_success(self.status)


class Courier:
    """Delivers what is due, beside the couriers of other workers."""

    def __init__(
        self,
        outbox: Outbox,
        endpoints: Mapping[str, Endpoint],
        *,
        client: httpx.AsyncClient,
        telemetry: Telemetry,
        clock: Clock,
        hooks: Hooks | None = None,
        hooks_secret: str = "",
    ) -> None:
        """`endpoints` by their names in the outbox, and the `hooks` of users' agents where there is a secret for their
        tokens; messages to others wait."""
        self._outbox = outbox
        self._endpoints = endpoints
        self._client = client
        self._telemetry = telemetry
        self._clock = clock
        self._hooks = hooks if hooks_secret else None
        self._hooks_secret = hooks_secret
        self._under_way: Counter[str] = Counter()
        """Attempts, by endpoint."""
        self._freed = asyncio.Event()
        """One has ended: there may be room for another."""

    async def keep_delivering(self) -> None:
        """Deliver for ever; a store in trouble is waited out. Cancelled, what is under way is tried again later."""
        looks = 0
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._freed.clear()
                try:
                    if looks % FORGET_EVERY_LOOKS == 0:
                        await self._outbox.forget_old()
                        await self._outbox.bring_forward()
                    looks += 1
                    await self._start_due(attempts)
                    self._telemetry.outbox_waiting.set(await self._outbox.waiting())
                except Refused as error:
                    logger.debug(
                        "no look at the outbox: %s", error
                    )  # the store has said what is wrong with it
                except Exception:
                    logger.exception("the outbox cannot be looked at")
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._freed.wait()

    async def deliver_due(self) -> int:
        """One attempt at what is due, as far as there is room; how many were ours to make.

        Raises Refused(STORE_UNAVAILABLE).
        """
        async with asyncio.TaskGroup() as attempts:
            return await self._start_due(attempts)

    async def _start_due(self, attempts: asyncio.TaskGroup) -> int:
        """A silent receiver takes up its own attempts' room, and keeps nobody waiting for their end."""
        started = 0
        for name, endpoint in [*self._endpoints.items(), *await self._agents()]:
            room = OUTBOX_AT_ONCE - self._under_way[name]
            due = await self._outbox.due(name, at_most=room) if room else []
            for message in due:
                if message.attempts >= OUTBOX_ATTEMPTS_MAX:  # its last one ended with its process
                    error = message.last_error or NO_ANSWER_KNOWN
                    await self._give_up(message, error, attempts=message.attempts)
                elif endpoint is None:  # its user wants to be told no more
                    await self._give_up(message, NO_HOOK, attempts=message.attempts)
                elif await self._outbox.claim(message):
                    self._under_way[name] += 1
                    attempts.create_task(self._attempt(name, endpoint, message))
                    started += 1
        return started

    async def _agents(self) -> list[tuple[str, AgentHook | None]]:
        """Agents with messages that are due; None where nobody is to be told any more."""
        if self._hooks is None:
            return []
        due = await self._hooks.due()
        return [
            (
                name,
                None
                if url is None
                else AgentHook(url, hook_token(self._hooks_secret, name.removeprefix(HOOK))),
            )
            for name, url in due
        ]

    async def _attempt(self, name: str, endpoint: Destination, message: Message) -> None:
        """One bad message must not keep the others from being sent."""
        try:
            await self._deliver(endpoint, message)
        except Refused as error:
            logger.debug("message %s: what became of it is not written: %s", message.id, error)
        except Exception:
            logger.exception("message %s cannot be sent", message.id)
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]  # names of users, of whom there are many
            self._freed.set()

    async def _deliver(self, endpoint: Destination, message: Message) -> None:
        answer = await self._send(endpoint, message)
        attempts = message.attempts + 1
        if answer.is_delivered:
            await self._outbox.delivered(message)
            self._telemetry.outbox_attempt("delivered")
        elif answer.status == GONE or attempts >= OUTBOX_ATTEMPTS_MAX:
            await self._give_up(message, answer.error, attempts=attempts)
        else:
            await self._outbox.failed(message, answer.error)
            self._telemetry.outbox_attempt("failed")
            logger.info("message %s (%s), attempt %d: %s", message.id, message.kind, attempts, answer.error)

    async def _give_up(self, message: Message, error: str, *, attempts: int) -> None:
        if not await self._outbox.give_up(message, error, attempts=attempts):
            return
        self._telemetry.outbox_attempt("gave_up")
        logger.error(
            "message %s (%s) is given up after %d attempts: %s", message.id, message.kind, attempts, error
        )

    async def _send(self, endpoint: Destination, message: Message) -> _Answer:
        status = None
        headers = endpoint.headers(message, self._clock.now_ms() // 1000)
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S) as patience:
                async with self._client.stream(
                    "POST", endpoint.url, content=message.body.encode(), headers=headers
                ) as answer:
                    status = answer.status_code
                    patience.reschedule(asyncio.get_running_loop().time() + ANSWER_REST_S)
                    await _pass_over(answer)
        except TimeoutError:
            error = f"no answer within {ATTEMPT_TIMEOUT_S:g} s"
        except httpx.HTTPError as failure:
            error = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
        if status is None:
            return _Answer(None, error)
        return _Answer(status, f"answered {status}")


async def _pass_over(answer: httpx.Response) -> None:
    """As it comes from the wire: what is packed is not unpacked."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            return


@asynccontextmanager
async def webhook_client(
    endpoints: Iterable[Endpoint], *, has_hooks: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """For webhooks alone: it follows no redirects, keeps no cookies, and heeds no proxy of the environment's.

    The machine's certificates, which cost 20 ms to read, are trusted where an endpoint needs them, else none."""
    needs_trust = has_hooks or any(endpoint.url.lower().startswith("https:") for endpoint in endpoints)
    async with httpx.AsyncClient(
        verify=ssl.create_default_context() if needs_trust else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        timeout=httpx.Timeout(ATTEMPT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=2 * OUTBOX_AT_ONCE, max_keepalive_connections=OUTBOX_AT_ONCE),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield client
