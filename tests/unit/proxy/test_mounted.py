"""Which operation a path means, and what its pieces say."""

from dataclasses import replace

import pytest

from automna_proxy.service import bounds_of
from automna_proxy.settings import Settings
from metering.errors import Reason, Refused
from proxy.meters import Free
from proxy.mounted import Mounted
from proxy.surface import Example, Operation
from routes import agentmail
from routes.agentmail_socket import SOCKET
from routes.openai import SURFACE


def operation(method: str, path: str) -> Operation:
    return Operation(method, path, meter=Free(), example=Example(path))


REPLY = operation("POST", "/v0/inboxes/{inbox_id}/messages/{message_id:*}/reply")
MESSAGE = operation("GET", "/v0/inboxes/{inbox_id}/messages/{message_id:*}")
RAW = operation("GET", "/v0/inboxes/{inbox_id}/messages/{message_id:*}/raw")
VERSIONED = operation("GET", "/{version:v1|v2}/models/{model}")


def mounted(*operations: Operation) -> Mounted:
    return Mounted(replace(SURFACE, operations=operations), {}, bounds_of(Settings.from_env({})))


@pytest.mark.parametrize(
    ("written", "message_id"),
    [
        ("%3CCAF/+=a%20b@mail.x%3E", "<CAF/+=a b@mail.x>"),
        ("%3CCAF%2F%2B%3Da%20b%40mail.x%3E", "<CAF/+=a b@mail.x>"),
        ("%3Ca//b@x%3E", "<a//b@x>"),
        ("<Ab.c..d@x>", "<Ab.c..d@x>"),
        ("<a;b..;c/d;e@x>", "<a;b..;c/d;e@x>"),
        ("reply", "reply"),
        ("a/reply", "a/reply"),
        ("%C3%A4", "\u00e4"),
    ],
)
def test_an_id_with_slashes_is_the_same_raw_and_encoded(written: str, message_id: str) -> None:
    path = f"/v0/inboxes/Foo+1@agentmail.to/messages/{written}/reply".encode()
    assert mounted(REPLY).match("POST", path) == (
        REPLY,
        {"inbox_id": "Foo+1@agentmail.to", "message_id": message_id},
    )


def test_of_several_that_match_the_first_is_meant() -> None:
    path = b"/v0/inboxes/i/messages/a/raw"
    assert mounted(RAW, MESSAGE).match("GET", path)[0] is RAW
    assert mounted(MESSAGE, RAW).match("GET", path)[0] is MESSAGE
    assert mounted(RAW, MESSAGE).match("GET", b"/v0/inboxes/i/messages/a/b")[0] is MESSAGE


@pytest.mark.parametrize(
    "path",
    [
        "/v0/inboxes/i/messages//reply",
        "/v0/inboxes/i/messages/../reply",
        "/v0/inboxes/i/messages/a/../../../b/reply",
        "/v0/inboxes/i/messages/a/%2e%2E/b/reply",
        "/v0/inboxes/i/messages/a%2F..%2Fb/reply",
        "/v0/inboxes/i/messages/%2e/reply",
        "/v0/inboxes/i/messages/..;/..;x=1/j/messages/a/reply",
        "/v0/inboxes/i/messages/a%2F%2E%2E%3Bx%2Fb/reply",
        "/v0/inboxes/i/messages/.;/reply",
        "/v0/inboxes/..;/messages/a/reply",
        "/v0/inboxes/%2e.%3B/messages/a/reply",
        "/v0/inboxes/i/messages/a%00/reply",
        "/v0/inboxes/i/messages/a%5Cb/reply",
        "/v0/inboxes/i/messages/a\\b/reply",
        "/v0/inboxes/i/messages/%FF/reply",
        "/v0/inboxes/i%2Fmessages/messages/a/reply",
        "/v0/inboxes/i%2Fx/messages/a%2Fb/reply",
        "/v0//inboxes/i/messages/a%2Fb/reply",
        "/v0/inboxes/../messages/a/reply",
        "/v0/inboxes/i/x/messages/a/reply",
        "/v0/inboxes/i/messages/a/reply/",
        "/v0/inboxes/i/messages/a/replyx",
    ],
)
def test_what_a_vendor_could_resolve_to_another_path_does_not_exist(path: str) -> None:
    with pytest.raises(Refused) as refused:
        mounted(REPLY).match("POST", path.encode())
    assert refused.value.reason is Reason.UNKNOWN_OPERATION


def test_words_are_matched_as_they_are_and_left_out_of_the_name() -> None:
    assert mounted(VERSIONED).match("GET", b"/v2/models/m") == (VERSIONED, {"version": "v2", "model": "m"})
    assert (VERSIONED.name, REPLY.name) == (
        "GET /{version}/models/{model}",
        "POST /v0/inboxes/{inbox_id}/messages/{message_id}/reply",
    )
    with pytest.raises(Refused):
        mounted(VERSIONED).match("GET", b"/v3/models/m")


@pytest.mark.parametrize(
    ("variables", "origin"),
    [
        ({}, "https://ws.agentmail.to"),
        ({"AGENTMAIL_UPSTREAM_URL": "http://127.0.0.1:9001"}, "http://127.0.0.1:9001"),
        ({"AGENTMAIL_WS_UPSTREAM_URL": "ws://127.0.0.1:9002"}, "http://127.0.0.1:9002"),
        ({"AGENTMAIL_WS_UPSTREAM_URL": "wss://eu.x", "AGENTMAIL_UPSTREAM_URL": "http://y"}, "https://eu.x"),
        ({"AGENTMAIL_WS_UPSTREAM_URL": "https://eu.x:8443"}, "https://eu.x:8443"),
    ],
)
def test_a_websocket_has_a_host_of_its_own_unless_the_surface_is_elsewhere(
    variables: dict[str, str], origin: str
) -> None:
    bounds = bounds_of(Settings.from_env({}))
    assert str(Mounted(agentmail.SURFACE, variables, bounds).socket_origin(SOCKET)) == origin


@pytest.mark.parametrize("url", ["ftp://x", "wss://x/v0", "wsx://x", "x", "wss://user@x"])
def test_an_override_of_a_websocket_that_cannot_be_used_names_its_variable(url: str) -> None:
    with pytest.raises(ValueError, match="AGENTMAIL_WS_UPSTREAM_URL"):
        Mounted(agentmail.SURFACE, {"AGENTMAIL_WS_UPSTREAM_URL": url}, bounds_of(Settings.from_env({})))
