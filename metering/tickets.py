"""Tickets: texts that stand for one object of one user for a while, to be put into an address.

Signed by a key that is kept in the store, so every worker knows one that another has minted. What is signed names the
object's owner, who is not in the text: when an object has changed hands, its old tickets are worth nothing. Whoever has one
may do with the object what the gateway token may that it was minted for, as long as that may.
"""

import base64
import binascii
import hashlib
import hmac
from typing import NamedTuple

from metering.clock import Clock
from metering.errors import Reason, Refused
from metering.objects import ObjectId, Objects
from metering.store.store import Store
from metering.store.writer import Declined, Step, Unit
from metering.stored_keys import StoredKey

MAC_BYTES = 18
"""Of the signature, in the text: 144 bits."""
TEXT_CHARS_MAX = 1_024
KEY_NAME = "tickets"
SPENT = "spent"
_BETWEEN = "\0"

PRUNE_SPENT = "DELETE FROM spent_tickets WHERE until_ms < ?1"
SPEND = """
INSERT INTO spent_tickets (ticket, until_ms) VALUES (?1, ?2) ON CONFLICT (ticket) DO NOTHING"""


class Ticket(NamedTuple):
    """What one stands for, and for whom."""

    one: ObjectId
    user_id: str
    token_id: str
    """Of the gateway token that it was minted for."""


class Tickets:
    """Minted and taken, bound to one store."""

    def __init__(self, store: Store, objects: Objects, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock
        self._key = StoredKey(store, clock, KEY_NAME)

    async def prepare(self) -> None:
        """Have the key at hand, which minting needs. Raises Refused(STORE_UNAVAILABLE)."""
        await self._key.get()

    def mint(self, one: ObjectId, user_id: str, token_id: str, *, valid_s: float) -> str:
        """A ticket for an object of the user's; the same for all of a second."""
        until_s = int(self._clock.now_ms() / 1000 + valid_s)
        mac = _signed(self._key.at_hand, one, user_id, token_id, until_s)
        return f"{until_s:x}.{_named(token_id, one.upstream_id)}.{mac}"

    async def redeem(self, text: str, vendor: str, kind: str, *, is_once: bool = False) -> Ticket:
        """What a ticket stands for, and for whom. With `is_once`, for the first to come.

        Raises Refused: UNAUTHENTICATED, whatever is wrong with it; STORE_UNAVAILABLE.
        """
        until_s, one, token_id, mac = _parts(text, vendor, kind)
        user_id = (await self._objects.owners({one})).get(one)
        expected = _signed(await self._key.get(), one, user_id or "", token_id, until_s)
        if user_id is None or not hmac.compare_digest(mac, expected):
            raise _refused()
        if until_s * 1000 <= self._clock.now_ms():
            raise Refused(Reason.UNAUTHENTICATED, "This address has expired: ask for a new one.")
        if is_once:
            now_ms, params = self._clock.now_ms(), (f"{until_s:x}.{mac}", until_s * 1000)
            unit = Unit((Step(PRUNE_SPENT, (now_ms,)), Step(SPEND, params, refusal=SPENT)))
            if isinstance(await self._store.writer.submit(unit), Declined):
                raise Refused(Reason.UNAUTHENTICATED, "This address was good for once: ask for a new one.")
        return Ticket(one, user_id, token_id)


def _signed(key: bytes, one: ObjectId, user_id: str, token_id: str, until_s: int) -> str:
    said = _BETWEEN.join((*one, user_id, token_id, str(until_s))).encode()
    digest = hmac.new(key, said, hashlib.sha256).digest()[:MAC_BYTES]
    return base64.urlsafe_b64encode(digest).decode()


def _parts(text: str, vendor: str, kind: str) -> tuple[int, ObjectId, str, str]:
    if len(text) > TEXT_CHARS_MAX or not text.isascii():
        raise _refused()
    try:
        until, named, mac = text.split(".")
        decoded = base64.urlsafe_b64decode(named + "=" * (-len(named) % 4)).decode()
        token_id, upstream_id = decoded.split(_BETWEEN)
        until_s = int(until, 16)
    except (ValueError, binascii.Error):
        raise _refused() from None
    if (until, named) != (f"{until_s:x}", _named(token_id, upstream_id)):  # one ticket has one spelling
        raise _refused()
    return until_s, ObjectId(vendor, kind, upstream_id), token_id, mac


def _named(token_id: str, upstream_id: str) -> str:
    return base64.urlsafe_b64encode(f"{token_id}{_BETWEEN}{upstream_id}".encode()).decode().rstrip("=")


def _refused() -> Refused:
    return Refused(Reason.UNAUTHENTICATED, "This address is good for nothing here.")
