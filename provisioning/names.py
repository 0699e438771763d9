"""What a user's things are called at vendors: the same always, of nobody else, and telling nobody who the user is."""

import hashlib
from collections.abc import Iterator

APP_HASH_CHARS = 20
"""Hexadecimal digits of the hash of the whole user id, in its own case: 80 bits."""
SALTS_MAX = 5
"""Names tried where other organizations have those before."""
MACHINE = "gw"
"""The one machine of an app."""


def user_hash(user_id: str) -> str:
    """Who a thing belongs to, as it stands in its metadata: 64 hexadecimal digits."""
    return hashlib.sha256(f"automna:{user_id}".encode()).hexdigest()


def app_names(prefix: str, user_id: str) -> Iterator[str]:
    """The names that a user's app may have, the usual one first. At most 62 characters of `a-z0-9-`, as Fly wants."""
    for salt in range(SALTS_MAX):
        said = f"automna:{user_id}" + (f":{salt}" if salt else "")
        yield prefix + hashlib.sha256(said.encode()).hexdigest()[:APP_HASH_CHARS]


def network(app_name: str) -> str:
    """The private network that the app is alone in."""
    return f"net-{app_name}"


def volume(generation: int) -> str:
    return f"data_{generation}"


def context(app_name: str, generation: int, attempt: int) -> str:
    """Of a browser context: unique in the vendor's whole project."""
    return f"{app_name}-{generation}" + (f"-{attempt}" if attempt else "")
