"""Secret keys that nobody has to set: made by whoever needs one first, kept in the store, the same on every worker."""

import secrets

from metering.clock import Clock
from metering.store.store import Store
from metering.store.writer import Step, Unit

KEY_BYTES = 32

SELECT_SECRET = "SELECT value FROM secrets WHERE name = ?1"
INSERT_SECRET = """
INSERT INTO secrets (name, value, created_at_ms) VALUES (?1, ?2, ?3) ON CONFLICT (name) DO NOTHING"""


class StoredKey:
    """One key, by its name."""

    def __init__(self, store: Store, clock: Clock, name: str) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._key = b""

    @property
    def at_hand(self) -> bytes:
        """The key, once it was asked for."""
        assert self._key, "prepared"
        return self._key

    async def get(self) -> bytes:
        """Raises Refused(STORE_UNAVAILABLE)."""
        if not self._key:
            made = (self._name, secrets.token_hex(KEY_BYTES), self._clock.now_ms())
            row = await self._store.readers.row(SELECT_SECRET, (self._name,))
            if row is None:
                await self._store.writer.submit(Unit((Step(INSERT_SECRET, made),)))
                row = await self._store.readers.row(SELECT_SECRET, (self._name,))
            assert row is not None, "a secret that was written is there"
            self._key = bytes.fromhex(str(row[0]))
        return self._key
