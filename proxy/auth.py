"""Who is calling: gateway tokens found where the surface declares, resolved through a bounded cache.

The cache is kept honest by the store's `changes`: every worker polls them a few times a second and forgets
what has changed. A worker that has not looked for longer than its bound looks once more before it admits
anybody: the event loop may have been busy. If it cannot, it does not know who is revoked, and says so (503)
instead of guessing.
"""

import asyncio
import math
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from metering.admission import Caller
from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.plans import Plans
from metering.store.writer import store_unavailable
from metering.tasks import spawn
from metering.users import TOKEN_PREFIX, Credential, Directory, hash_of
from proxy.query import name_of, parameters
from proxy.remembered import AccessKey, Remembered
from proxy.request import Request
from proxy.surface import HeaderKey, Headers, QueryKey, TokenPlace

GATEWAY_TOKEN_BYTES_MAX = 512
"""Longer ones are not ours: they are not even hashed."""

OnChanges = Callable[[int, Collection[tuple[str, str]] | None], None]
"""Told with every look up to which change was heard, and what (kind, subject) has changed; None: everything may have."""

_TOKEN = re.compile(rf"{TOKEN_PREFIX}[\w-]+", re.ASCII)


class TokenPlaces:
    """Where a surface looks for gateway tokens, made ready."""

    __slots__ = ("_parameters", "_schemes")

    def __init__(self, places: Sequence[TokenPlace]) -> None:
        self._schemes: dict[bytes, list[bytes]] = {}
        """By header. A value after a scheme is no bare one, where both may stand."""
        for place in places:
            if isinstance(place, HeaderKey):
                self._schemes.setdefault(place.name.encode(), []).append(place.scheme.encode().lower())
        for schemes in self._schemes.values():
            schemes.sort(key=lambda scheme: not scheme)
        self._parameters = frozenset(place.name for place in places if isinstance(place, QueryKey))

    def find(self, headers: Headers, query: bytes) -> set[bytes]:
        """The distinct credentials a request carries in these places."""
        found: set[bytes] = set()
        schemes_of = self._schemes
        for name, value in headers:
            if name in schemes_of:  # few are, and clients send dozens
                _add_credentials(found, value, schemes_of[name])
        if self._parameters and query:
            found.update(value for name, value in parameters(query) if name in self._parameters)
        found.discard(b"")
        return found

    def find_in(self, request: Request) -> set[bytes]:
        """As `find`, in a request."""
        first, query = request.first, request.query
        if request.has_repeats or (query and self._parameters):
            return self.find(request.headers, query)
        found: set[bytes] = set()
        for name, schemes in self._schemes.items():
            if name in first:
                _add_credentials(found, first[name], schemes)
        found.discard(b"")
        return found

    def removed(self, query: bytes) -> bytes:
        """The query without them; what is left is byte for byte as it was."""
        if not self._parameters or not query:
            return query
        kept = [piece for piece in query.split(b"&") if name_of(piece) not in self._parameters]
        return b"&".join(kept)


def _add_credentials(found: set[bytes], value: bytes, schemes: Sequence[bytes]) -> None:
    for scheme in schemes:
        if not scheme:
            found.add(value.strip())
        elif value[: len(scheme)].lower() == scheme:
            found.add(value[len(scheme) :].strip())
            break


def conceal_tokens(refused: Refused) -> None:
    """Take the gateway tokens that a request's own words brought in out of an error: it is logged, and shown to
    people."""
    refused.message = _without_tokens(refused.message)
    if refused.facts:
        refused.facts = {
            name: _without_tokens(fact) if isinstance(fact, str) else fact
            for name, fact in refused.facts.items()
        }


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(f"{TOKEN_PREFIX}...", text) if TOKEN_PREFIX in text else text


def unauthenticated(message: str) -> Refused:
    return Refused(Reason.UNAUTHENTICATED, message)


class Authenticator:
    """From a gateway token to a caller, with a cache of `cache_max` tokens."""

    def __init__(
        self,
        directory: Directory,
        plans: Plans,
        clock: Clock,
        *,
        cache_max: int,
        poll_s: float,
        stale_after_s: float,
        on_changes: OnChanges | None = None,
    ) -> None:
        self._directory = directory
        self._plans = plans
        self._clock = clock
        self._poll_s = poll_s
        self._stale_after_s = stale_after_s
        self.on_changes: list[OnChanges] = [] if on_changes is None else [on_changes]
        self._cache = Remembered(cache_max)
        self._seen_seq: int | None = None
        """The newest change that was heard of; None before the first look."""
        self._looked_at_s = self._failed_at_s = -math.inf
        self._look: asyncio.Task[None] | None = None

    def known(self, tokens: set[bytes]) -> Caller | None:
        """Whoever has the one token, in the usual case: nothing has to be looked up, or decided anew. Else None, and
        `authenticate` tells."""
        if len(tokens) != 1 or self._is_stale():
            return None
        (token,) = tokens
        known = self._cache.get(token)
        return None if known is None else known.caller

    async def authenticate(self, tokens: set[bytes]) -> Caller:
        """Raises Refused: UNAUTHENTICATED, FORBIDDEN (disabled user), STORE_UNAVAILABLE."""
        if len(tokens) != 1:
            raise unauthenticated(
                "Two different API keys were sent; send your gateway token once."
                if tokens
                else "No API key was sent. Send your gateway token as the API key."
            )
        (token,) = tokens
        return await self.let_in(token)

    async def let_in(self, key: AccessKey) -> Caller:
        """Whoever was let in by this before, as they are now; or whoever has a ticket of the gateway token with this id.
        Raises as `authenticate`."""
        if self._is_stale():
            await self._catch_up()
        known = self._cache.get(key)
        if known is None:
            return self._caller(await self._look_up(key))
        if known.caller is not None:
            return known.caller
        caller = self._caller(known.credential)
        if not known.may_end:
            known.caller = caller
        return caller

    def may_end(self, key: AccessKey) -> bool:
        """Whether what it allows may end without a word in the store; or it is not remembered."""
        known = self._cache.peek(key)
        return known is None or known.may_end

    def _caller(self, credential: Credential) -> Caller:
        now_ms = self._clock.now_ms()
        if credential.revoked_at_ms is not None:
            raise unauthenticated("This API key is no longer valid: it was revoked.")
        if credential.expires_at_ms is not None and now_ms >= credential.expires_at_ms:
            raise unauthenticated("This API key has expired.")
        if credential.status != "active":
            raise Refused(Reason.FORBIDDEN, "This account is disabled.")
        plan_name = credential.plan_at(now_ms)
        plan = self._plans.get(plan_name)
        if plan is None:
            raise Refused(
                Reason.NOT_CONFIGURED,
                f"The plan {plan_name} of this account is not in the plans file.",
            )
        has_credit = credential.granted_nanousd > 0
        return Caller(credential.user_id, credential.token_id, plan, credential.terms, has_credit=has_credit)

    async def _look_up(self, key: AccessKey) -> Credential:
        if len(key) > GATEWAY_TOKEN_BYTES_MAX:
            raise unauthenticated("invalid x-api-key")
        seq = self._seen_seq
        if isinstance(key, str):
            credential = await self._directory.credential_by_id(key)
        else:
            credential = await self._directory.credential(hash_of(key.decode("utf-8", "surrogateescape")))
        if credential is None:
            raise unauthenticated("invalid x-api-key")
        # A change that was heard of while we read may be newer than what we read: use it once, keep nothing.
        if seq == self._seen_seq:
            self._cache.put(key, credential)
        return credential

    # --- changes -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin at the newest change: nothing that is older can be in the cache. Raises
        Refused(STORE_UNAVAILABLE); the next look tries again."""
        began_s = self._clock.monotonic_s()
        self._seen_seq = await self._directory.last_change()
        self._tell(self._seen_seq, None)
        self._looked_at_s = began_s

    def _is_stale(self) -> bool:
        return self._clock.monotonic_s() - self._looked_at_s > self._stale_after_s

    async def _catch_up(self) -> None:
        """Look now, for so long; not when a look has just failed. Raises Refused(STORE_UNAVAILABLE).

        A look that was slow is out of date when it is over: it tells what was so when it began. Then once more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stale_after_s):
                while self._is_stale() and not self._has_just_failed():
                    await self.look_for_changes()
        if self._is_stale():
            raise store_unavailable("revocations cannot be read")

    def _has_just_failed(self) -> bool:
        return self._clock.monotonic_s() - self._failed_at_s <= self._poll_s

    async def look_for_changes(self) -> None:
        """Forget what has changed since the last look. One look at a time: who comes during one waits for it."""
        if self._look is None:
            self._look = spawn(self._look_once(), name="look for changes")
        await asyncio.shield(self._look)

    async def _look_once(self) -> None:
        """A failed look leaves everything as it is; the readers have logged it."""
        began_s = self._clock.monotonic_s()
        try:
            if self._seen_seq is None:
                await self.start()
                return
            changes = await self._directory.changes_since(self._seen_seq)
            if changes is None:  # what we know is of a store that is no more
                self._cache.clear()
                self._seen_seq = None
                await self.start()
                return
        except Refused:
            self._failed_at_s = self._clock.monotonic_s()
            return
        finally:
            self._look = None
        if changes:
            self._seen_seq = changes[-1][0]
            changed = {(kind, subject) for _, kind, subject in changes}
            self._cache.forget(changed)
            self._tell(self._seen_seq, changed)
        self._looked_at_s = began_s

    def _tell(self, seq: int, changed: Collection[tuple[str, str]] | None) -> None:
        for listener in self.on_changes:
            listener(seq, changed)

    async def follow_changes(self) -> None:
        """Look forever."""
        while True:
            await self.look_for_changes()
            await asyncio.sleep(self._poll_s)
