"""What must be known, or exist, before a request is priced and forwarded: an object of the vendor's that it is about, the
user's home there, what became of the same request before."""

from collections.abc import Mapping
from typing import Any

from metering.admission import Claim, repeat_running
from metering.errors import Reason, Refused
from metering.objects import Objects, user_tag
from metering.repeats import Repeat, Repeats, is_unsure, key_of
from metering.return_addresses import ReturnAddresses
from proxy.exchange import Exchange
from proxy.homes import Homes
from proxy.mounted import Mounted
from proxy.side_calls import SideCalls
from proxy.surface import Inbound, LookUp, Operation

KEY_HEADER = b"idempotency-key"
KEY_CHARS_MAX = 256
_KEY_CHARS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
"""What may stand in a key (AgentMail's documentation): anything else is refused there, so it is here."""


class Preparation:
    """The steps before admission and forwarding that some operations declare."""

    def __init__(
        self, *, objects: Objects, repeats: Repeats, calls: SideCalls, addresses: ReturnAddresses
    ) -> None:
        self._addresses = addresses
        self._objects = objects
        self._repeats = repeats
        self._calls = calls
        self._homes = Homes(objects, calls)

    async def look_up(self, exchange: Exchange, mounted: Mounted, path: bytes) -> None:
        """Read what the request must be priced by. Raises Refused."""
        operation, inbound = exchange.operation, exchange.inbound
        assert operation is not None
        assert inbound is not None
        inbound.looked_up = inbound.looked_behind = {}
        wanted = operation.looks_up
        if wanted is None or not _is_wanted(wanted, inbound):
            return
        inbound.looked_up = await self._found(mounted, operation, wanted, inbound, path)
        if wanted.behind is not None and _is_wanted(wanted.behind, inbound):
            inbound.looked_behind = await self._found(mounted, operation, wanted.behind, inbound, path)

    async def _found(
        self, mounted: Mounted, operation: Operation, wanted: LookUp, inbound: Inbound, path: bytes
    ) -> Mapping[str, Any]:
        pieces = {} if wanted.pieces is None else wanted.pieces(inbound)
        where = mounted.look_up_path(operation, wanted.path, path, pieces)
        found = await self._calls.get(mounted, where)
        if found is None:
            raise Refused(Reason.OBJECT_NOT_FOUND, wanted.words)
        return found

    def one_more(self, exchange: Exchange, mounted: Mounted) -> Claim | None:
        """What allows the user one more of what the request makes, where that is limited."""
        operation, caller, surface = exchange.operation, exchange.caller, mounted.surface
        assert operation is not None
        assert caller is not None
        if operation.at_most is None:
            return None
        kind, option = operation.at_most
        most = int(mounted.options[option])
        makers = [
            one.name for one in surface.operations if one.at_most is not None and one.at_most[0] == kind
        ]
        step = self._objects.one_more(
            exchange.request_id, surface.provider, kind, caller.user_id, most=most, makers=makers
        )
        words = f"Limit reached: {most} of this kind per user."
        return Claim(step, Refused(Reason.FORBIDDEN, words, facts={"kind": kind, "limit": most}))

    async def repeat_of(self, exchange: Exchange, path: bytes) -> Repeat:
        """What became of the same request before; with the step that claims its key. Raises Refused(CONFLICT)."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        assert operation is not None
        assert inbound is not None
        assert caller is not None
        given = _key_in(inbound.headers)
        said = b"\n".join((inbound.method.encode(), path, inbound.query, inbound.body))
        key = key_of(caller.user_id, exchange.surface.name, given, said)
        earlier = await self._repeats.earlier(key)
        if earlier is not None and earlier.is_running:
            raise repeat_running()
        if earlier is not None and earlier.is_done:
            if earlier.fingerprint != key.fingerprint:
                raise Refused(
                    Reason.CONFLICT, "The idempotency key was used for a request with other content."
                )
            return Repeat(key, earlier.upstream_key, is_done=True, claim=None)
        upstream_key = (
            exchange.request_id if given is None else f"{user_tag(caller.user_id)}-{key.upstream_digest}"
        )
        if earlier is not None and earlier.is_unsure:
            upstream_key = earlier.upstream_key
        claim = self._repeats.claiming(key, upstream_key, exchange.request_id, earlier)
        return Repeat(key, upstream_key, is_done=False, claim=claim)

    async def name_of(self, exchange: Exchange, path: bytes) -> Repeat | None:
        """Under which name of ours the vendor makes once what this request schedules, unless the client gave one; None
        where no name is taken. The same request, repeated as it got no answer, has the same; what that has done is not done again. Raises
        Refused(CONFLICT)."""
        operation, inbound, caller = exchange.operation, exchange.inbound, exchange.caller
        assert operation is not None
        assert operation.scheduled is not None
        assert inbound is not None
        assert caller is not None
        if not operation.scheduled.name_field:
            return None
        said = b"\n".join((inbound.method.encode(), path, inbound.query, inbound.body))
        key = key_of(caller.user_id, exchange.surface.name, None, said)
        earlier = await self._repeats.earlier(key)
        if earlier is not None and earlier.is_running:
            raise repeat_running()
        if earlier is not None and earlier.is_done and not earlier.may_stand:
            raise Refused(Reason.CONFLICT, "The same request was made before, and its work is done.")
        name = earlier.upstream_key if earlier is not None and earlier.may_stand else exchange.request_id
        claim = self._repeats.claiming(key, name, exchange.request_id, earlier)
        return Repeat(key, name, is_done=False, claim=claim)

    def may_ask_again(self, exchange: Exchange) -> bool:
        """Whether the vendor does nothing twice if a request whose answer was lost is sent once more."""
        operation, at_ms = exchange.operation, exchange.demand.scheduled_ms
        assert operation is not None
        if operation.is_repeatable:
            return True
        return exchange.repeat is not None and at_ms is not None and self._repeats.is_ahead(at_ms)

    def forget(self, repeat: Repeat, status: int | None) -> None:
        """The client has its answer. A key of its own is remembered all the same, and so is one of a request of which
        that answer does not tell whether it was done."""
        if repeat.key.is_made and status is not None and not is_unsure(status):
            self._repeats.forget(repeat.key, repeat.upstream_key)

    async def tell_where(self, exchange: Exchange, told_at: tuple[str, str], public_url: str) -> None:
        """Say where the vendor shall tell of this request. Raises Refused: BAD_REQUEST, STORE_UNAVAILABLE."""
        field, path = told_at
        assert exchange.inbound is not None
        if exchange.inbound.fields.get(field) is not None:
            raise Refused(Reason.BAD_REQUEST, f"{field}: is the gateway's own.")
        if public_url:
            piece = await self._addresses.piece_of(exchange.request_id)
            exchange.says[field] = f"{public_url}{path}/{piece}"

    async def find_own_ids(self, exchange: Exchange, mounted: Mounted) -> None:
        """What of the list that a request asks for is its user's. Raises Refused(STORE_UNAVAILABLE)."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert operation.keeps is not None
        assert caller is not None
        kind, vendor = operation.keeps.kind, mounted.surface.provider
        exchange.own_ids = await self._objects.ids_of(vendor, kind, caller.user_id)

    async def homes_of(self, exchange: Exchange, mounted: Mounted) -> Mapping[str, str]:
        """Raises Refused."""
        operation, caller = exchange.operation, exchange.caller
        assert operation is not None
        assert caller is not None
        return await self.homes_named(mounted, operation.homes, caller.user_id)

    async def homes_named(self, mounted: Mounted, names: tuple[str, ...], user_id: str) -> Mapping[str, str]:
        """Raises Refused, OwnersChangedError."""
        return await self._homes.of(mounted, names, user_id)


def _is_wanted(wanted: LookUp, inbound: Inbound) -> bool:
    return wanted.when is None or wanted.when(inbound)


def _key_in(headers: Any) -> str | None:
    """The client's key; None where it sent none. Raises Refused(BAD_REQUEST)."""
    values = [value for name, value in headers if name == KEY_HEADER]
    if not values:
        return None
    if len(values) > 1 or not 0 < len(values[0]) <= KEY_CHARS_MAX or not set(values[0]) <= _KEY_CHARS:
        raise Refused(
            Reason.BAD_REQUEST,
            f"Idempotency-Key: one of 1 to {KEY_CHARS_MAX} letters, digits and -._~ is expected.",
        )
    return str(values[0].decode())
