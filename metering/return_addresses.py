"""Where a vendor tells us of one request: an address that nobody can guess, which says which request it is about.

Signed by a key that is kept in the store. Whoever knows one can have that request's work asked about, and nothing else.
"""

import hashlib
import hmac

from metering.clock import Clock
from metering.store.store import Store
from metering.stored_keys import StoredKey

KEY_NAME = "return addresses"
MAC_CHARS = 48
"""Of the signature, in the text: 192 bits."""
TEXT_CHARS_MAX = 256


class ReturnAddresses:
    """The last piece of such addresses, bound to one store. Everything raises Refused(STORE_UNAVAILABLE)."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._key = StoredKey(store, clock, KEY_NAME)

    async def piece_of(self, request_id: str) -> str:
        """Letters, digits, `_` and `.`: the same for a request on every worker."""
        return f"{request_id}.{_signed(await self._key.get(), request_id)}"

    async def request_of(self, piece: str) -> str | None:
        """The request that a piece is of; None of what is none of ours."""
        request_id, _, mac = piece[:TEXT_CHARS_MAX].rpartition(".")
        expected = _signed(await self._key.get(), request_id)
        is_ours = bool(request_id) and hmac.compare_digest(mac.encode(), expected.encode())
        return request_id if is_ours else None


def _signed(key: bytes, request_id: str) -> str:
    return hmac.new(key, request_id.encode(), hashlib.sha256).hexdigest()[:MAC_CHARS]
