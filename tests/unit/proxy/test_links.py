"""What an answer shows in the place of a vendor's own addresses, and where a caller reaches us."""

from typing import Any, cast

import orjson
import pytest

from automna_proxy.service import bounds_of
from automna_proxy.settings import Settings
from metering.admission import Caller
from metering.tickets import Tickets
from proxy.links import base_of, relinker, websocket_url
from proxy.mounted import Mounted
from routes.browserbase import SURFACE

MOUNTED = Mounted(SURFACE, {"BROWSERBASE_TICKET_S": "60"}, bounds_of(Settings.from_env({})))
LINKS = next(one.links for one in SURFACE.operations if one.links is not None)
OURS = "wss://proxy.example.com/api/browserbase/connect/"


class Minted:
    """Tickets that say what they stand for."""

    def mint(self, one: Any, user_id: str, token_id: str, *, valid_s: float) -> str:
        return f"{one.kind}-{one.upstream_id}-{user_id}-{token_id}-{valid_s:g}"


def shown(body: Any) -> Any:
    caller = Caller("ada", "tok_1", cast("Any", None))
    edit = relinker(LINKS, MOUNTED, cast("Tickets", Minted()), caller, "https://proxy.example.com")
    return orjson.loads(edit(orjson.dumps(body)))


def test_addresses_and_keys_are_ours_wherever_a_session_stands():
    session = {
        "id": "s1",
        "connectUrl": "wss://x/?signingKey=k",
        "signingKey": "k",
        "seleniumRemoteUrl": "http://x",
    }
    ticket = "session-s1-ada-tok_1-60"
    ours = {"id": "s1", "connectUrl": OURS + ticket, "signingKey": ticket, "seleniumRemoteUrl": ""}
    assert shown(session) == ours
    assert shown([session, {"deeper": {"sessions": [session]}}]) == [ours, {"deeper": {"sessions": [ours]}}]


def test_what_leads_nowhere_that_we_know_is_emptied():
    for bare in (
        {"connectUrl": "wss://x"},
        {"id": 7, "connectUrl": "wss://x"},
        {"id": "", "connectUrl": ["wss://x"]},
    ):
        assert shown(bare) == {**bare, "connectUrl": ""}


def test_what_has_none_of_these_stays_byte_for_byte():
    caller = Caller("ada", "tok_1", cast("Any", None))
    edit = relinker(LINKS, MOUNTED, cast("Tickets", Minted()), caller, "https://proxy.example.com")
    for body in (b'{"id":  "s1", "connectUrl":null}', b"[1, 2]", b'"connectUrl"', b""):
        assert edit(body) == body


@pytest.mark.parametrize(
    ("public", "headers", "base"),
    [
        ("https://p.example", [(b"host", b"other")], "https://p.example"),
        ("", [(b"host", b"h.example:8080")], "http://h.example:8080"),
        ("", [(b"host", b"h.example"), (b"x-forwarded-proto", b"https")], "https://h.example"),
        ("", [(b"host", b"h.example"), (b"x-forwarded-proto", b"javascript")], "http://h.example"),
        ("", [(b"host", b'h"><script>')], "http://localhost"),
        ("", [(b"host", b"[::1]:80")], "http://[::1]:80"),
        ("", [], "http://localhost"),
    ],
)
def test_a_caller_reaches_us_where_it_has_sent_its_request_unless_the_operator_says(public, headers, base):
    assert base_of(public, headers, "http") == base
    assert (
        websocket_url("https://p.example", MOUNTED, "/connect") == "wss://p.example/api/browserbase/connect"
    )
