"""A gateway before a vendor that keeps every byte, and a client that sends any bytes it likes.

The vendor reads with the reference parser alone: what the gateway sends up must be beyond doubt.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import orjson

from metering.clock import Clock
from metering.objects import ObjectId, Objects
from metering.phone_numbers import PhoneNumbers
from routes import anthropic, bland, brave, browserbase, gemini, openai
from simulators.anthropic import ReportedUsage
from simulators.anthropic_messages import Content, Message, message_json
from simulators.bland import VENDOR_KEY as BLAND_KEY
from simulators.brave import VENDOR_KEY as BRAVE_KEY
from simulators.brave_answers import Reply as BraveReply
from simulators.brave_answers import ReportedUsage as BraveUsage
from simulators.brave_answers import Tags
from simulators.brave_answers import chat_json as brave_json
from simulators.browserbase import VENDOR_KEY as BROWSERBASE_KEY
from simulators.gemini import VENDOR_KEY as GEMINI_KEY
from simulators.openai import VENDOR_KEY as OPENAI_KEY
from simulators.openai_shapes import Reply, chat_json
from simulators.openai_shapes import ReportedUsage as OpenAIUsage
from tests.hostile import reference
from tests.support.gateway import Gateway, messages_body, running_gateway

MESSAGES = b"/api/llm/v1/messages"
CHAT, RESPONSES = b"/api/openai/v1/chat/completions", b"/api/openai/v1/responses"
GENERATE = b"/api/gemini/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = b"/api/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent"
EXTENSIONS, SESSIONS = b"/api/browserbase/v1/extensions", b"/api/browserbase/v1/sessions"
CALLS = b"/api/bland/v1/calls"
OWN = b"0b8e5a4c-3f62-4d0e-9a37-5f1f6a0c7d11"
"""The id of whatever Browserbase and Bland keep for the user: that of all their examples."""
NUMBER, OTHERS_NUMBER = "+14155550111", "+14155550122"
SEARCH, ANSWERS = b"/api/brave/res/v1/web/search", b"/api/brave/res/v1/chat/completions"
MOUNTS = {
    b"/api/llm": "anthropic",
    b"/api/openai": "openai",
    b"/api/gemini": "gemini",
    b"/api/brave": "brave",
    b"/api/search": "brave",
    b"/api/browserbase": "browserbase",
    b"/api/bland": "bland",
}
CREDENTIAL = {
    b"/api/llm": b"x-api-key: ",
    b"/api/openai": b"authorization: Bearer ",
    b"/api/gemini": b"x-goog-api-key: ",
    b"/api/brave": b"x-subscription-token: ",
    b"/api/search": b"x-subscription-token: ",
    b"/api/browserbase": b"x-bb-api-key: ",
    b"/api/bland": b"authorization: ",
}
"""Where each surface's own clients put their key."""
EXAMPLES = {
    (operation.method.encode(), operation.example.path.partition("?")[0].encode()): operation.example
    for surface in (
        *(anthropic.SURFACE, openai.SURFACE, gemini.SURFACE, brave.SURFACE),
        *(browserbase.SURFACE, bland.SURFACE),
    )
    for operation in surface.operations
}
KEPT = (
    *(("browserbase", kind) for kind in (browserbase.SESSION, browserbase.CONTEXT, browserbase.EXTENSION)),
    ("bland", bland.CALL),
)
LOOKED_FOR = {
    re.compile(rb"/v1/calls\?to_number=[^&]*&limit=100"): b'{"calls":[]}',
    re.compile(rb"/v1/sessions\?q=[^&]*automna[^&]*"): b"[]",
}
"""What the gateway asks by itself when a client has left while something was begun for it; nothing was."""
EDITED = {
    CALLS: frozenset({"metadata", "from", "phone_number", "max_duration"}),
    SESSIONS: frozenset({"userMetadata", "timeout", "projectId"}),
}
"""Fields of a body that do not go up as they came."""
UNSTREAMED = message_json(
    Message(
        "msg_1", "claude-haiku-4-5-20251001", Content("Teal."), ReportedUsage(input_tokens=9, output_tokens=3)
    )
)
CHAT_UNSTREAMED = chat_json(
    Reply("chatcmpl-1", "gpt-5.6-sol", "Teal.", OpenAIUsage(prompt_tokens=9, completion_tokens=3))
)
ANSWERS_UNSTREAMED = brave_json(
    BraveReply("a1", "brave", "Teal.", BraveUsage(queries=1, input_tokens=9, output_tokens=3), Tags())
)
WHOLE = {b"/v1/messages": UNSTREAMED, b"/v1/chat/completions": CHAT_UNSTREAMED}
"""By path: instead of the example, where no stream was asked for."""
_SOMETHING = EXAMPLES[b"GET", b"/v1/models/claude-haiku-4-5-20251001"]
POLL_S = 0.001
STALLED_TURNS = 20
"""Looks without any progress, nothing being served, after which a conversation is over."""
ENDS_WITHIN_S = 20.0
OWN_STATUSES = frozenset({200, 400, 401, 404, 405, 413, 426, 429, 431})
"""All that a hostile request may be told, once its vendor is well."""
CREDITS = 10**10
ADMIN_TOKEN = "operators-token-of-hostile-tests-" + "0" * 16


# --- the vendor -----------------------------------------------------------------------------------------


class RecordingVendor:
    """Answers every request that is one with the operation's example; keeps requests, and bytes that are none."""

    def __init__(self) -> None:
        self.requests: list[reference.Request] = []
        self.violations: list[bytes] = []
        self.connections: set[_VendorConnection] = set()
        self.url = ""
        self.said: bytes | None = None
        """Instead of the example: an answer as it goes over the wire, behind which the connection ends."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RecordingVendor"]:
        server = await asyncio.get_running_loop().create_server(
            lambda: _VendorConnection(self), "127.0.0.1", 0
        )
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in list(self.connections):
                connection.transport.abort()
            await server.wait_closed()

    def answer(self, request: reference.Request) -> bytes:
        for target, nothing in LOOKED_FOR.items():
            if request.method == b"GET" and target.fullmatch(request.target):
                self.requests.remove(request)
                return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(nothing), nothing)
        example = EXAMPLES.get((request.method, request.path)) or _SOMETHING
        kind, body = example.answer_content_type, example.answer
        if request.path == ANSWERS.removeprefix(b"/api/brave"):  # which streams unless told not to
            if orjson.loads(request.body).get("stream") is False:
                kind, body = "application/json", ANSWERS_UNSTREAMED
        elif (whole := WHOLE.get(request.path)) and orjson.loads(request.body).get("stream") is not True:
            kind, body = "application/json", whole
        return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            kind.encode(), len(body), body
        )  # fmt: skip


class _VendorConnection(asyncio.Protocol):
    def __init__(self, vendor: RecordingVendor) -> None:
        self._vendor = vendor
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._vendor.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._vendor.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        reading = reference.read(self._received)
        self._received = self._received[reading.read_bytes :]
        for request in reading.requests:
            self._vendor.requests.append(request)
            if self._vendor.said is not None:
                self.transport.write(self._vendor.said)
                self.transport.close()
                return
            self.transport.write(self._vendor.answer(request))
        if reading.end is reference.End.INVALID or len(reading.requests) > 1:
            self._vendor.violations.append(self._received)
            self.transport.abort()


# --- answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer. Header names in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def message(self) -> str:
        """The error's words, in any of our dialects."""
        document = orjson.loads(self.body)
        error = document["message"] if "statusCode" in document or "status" in document else document["error"]
        if not isinstance(error, dict):
            return error
        return error["detail"] if "detail" in error else error["message"]


class MalformedError(AssertionError):
    """What came back is not HTTP."""


def answers_of(data: bytes) -> tuple[list[Answer], bytes]:
    """The whole final answers in `data`, and the bytes of one that has not ended. Raises MalformedError."""
    answers = []
    while data:
        head, mark, rest = data.partition(b"\r\n\r\n")
        if not mark:
            break
        status_line, *lines = head.split(b"\r\n")
        words = status_line.split(b" ", 2)
        if len(words) < 2 or words[0] != b"HTTP/1.1" or not words[1].isdigit():
            raise MalformedError(f"no status line: {data[:200]!r}")
        status = int(words[1])
        headers = {}
        for line in lines:
            name, colon, value = line.partition(b": ")
            if not colon or name in headers:
                raise MalformedError(f"not a header, or twice: {line!r}")
            headers[name.lower()] = value
        if status == 100:
            data = rest
            continue
        body = _answer_body(headers, rest)
        if body is None:
            break
        answers.append(Answer(status, headers, body[0]))
        data = body[1]
    return answers, data


def _answer_body(headers: dict[bytes, bytes], data: bytes) -> tuple[bytes, bytes] | None:
    if b"content-length" in headers:
        length = int(headers[b"content-length"])
        return (data[:length], data[length:]) if len(data) >= length else None
    if headers.get(b"transfer-encoding") != b"chunked":
        if headers.get(b"connection") == b"close":  # for HTTP/1.0: framed by the connection's end
            return data, b""
        raise MalformedError(f"an answer without a framing: {headers!r}")
    body = b""
    while True:
        size, mark, rest = data.partition(b"\r\n")
        if not mark or len(rest) < int(size, 16) + 2:
            return None
        length = int(size, 16)
        if rest[length : length + 2] != b"\r\n":
            raise MalformedError(f"a chunk without its end: {data[:200]!r}")
        body, data = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, data


# --- the client -----------------------------------------------------------------------------------------


class Peer(asyncio.Protocol):
    """A connection whose bytes the test writes itself."""

    def __init__(self) -> None:
        self.received = b""
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True

    def send(self, *pieces: bytes) -> None:
        self.transport.write(b"".join(pieces))

    @property
    def answers(self) -> list[Answer]:
        return answers_of(self.received)[0]


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that came back on one connection, and whether the gateway closed it."""

    answers: list[Answer]
    rest: bytes
    is_closed: bool

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


# --- the stage ------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A running gateway, its vendor, and the good token that hostile requests carry."""

    gateway: Gateway
    vendor: RecordingVendor
    token: str
    other: str
    """Another user's, as good."""
    revoked: str

    async def give(self) -> None:
        """What the good token's user, and another, have at vendors."""
        store, clock = self.gateway.service.store, self.gateway.clock
        for user_id, number in (("u1", NUMBER), ("other", OTHERS_NUMBER)):
            await PhoneNumbers(store, clock).assign(user_id, number)
        for vendor, kind in KEPT:
            await Objects(store, clock).bind([ObjectId(vendor, kind, OWN.decode())], "u1", "req_before")

    def head(
        self,
        *headers: bytes,
        method: bytes = b"POST",
        target: bytes = MESSAGES,
        version: bytes = b"HTTP/1.1",
        token: str | None = None,
    ) -> bytes:
        """A request's head, `headers` as they are to be written."""
        lines = [b"%b %b %b" % (method, target, version), b"host: proxy"]
        lines.append(CREDENTIAL[mount_of(target)] + (token or self.token).encode())
        return b"\r\n".join([*lines, *headers, b"", b""])

    def post(self, *headers: bytes, body: bytes | None = None, **more: Any) -> bytes:
        """A whole request with a body of known length."""
        body = small_body() if body is None else body
        return self.head(*headers, b"content-length: %d" % len(body), **more) + body

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Peer]:
        address = urlsplit(self.gateway.url)
        _, peer = await asyncio.get_running_loop().create_connection(Peer, address.hostname, address.port)
        try:
            yield peer
        finally:
            peer.transport.abort()

    async def converse(self, *pieces: bytes, answers: int) -> Conversation:
        """Send pieces, each to be read by itself, and wait for so many answers, the connection's end, or until
        nothing happens any more."""
        async with self.connected() as peer:
            for piece in pieces:
                if peer.is_closed:
                    break
                peer.send(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await self.settled(peer, answers)
            found, rest = answers_of(peer.received)
            return Conversation(found, rest, peer.is_closed)

    async def settled(self, peer: Peer, answers: int) -> None:
        stalled, seen = 0, -1
        async with asyncio.timeout(ENDS_WITHIN_S):
            while not peer.is_closed and stalled < STALLED_TURNS:
                if len(peer.received) != seen:
                    seen, stalled = len(peer.received), 0
                is_serving = self.is_serving
                if not is_serving and len(peer.answers) >= answers and stalled > 1:
                    return
                stalled = 0 if is_serving or peer.transport.get_write_buffer_size() else stalled + 1
                await asyncio.sleep(POLL_S)

    @property
    def is_serving(self) -> bool:
        """A whole request has no answer yet."""
        running = [one._running for one in self.gateway.server.server_state.connections]
        return self.gateway.service.engine.open_exchanges > 0 or any(
            one is not None and one.is_whole and not one.is_answered for one in running
        )

    def forget(self) -> None:
        """Before the next case."""
        self.vendor.requests.clear()
        self.vendor.violations.clear()
        self.vendor.said = None
        self.gateway.lines.clear()

    async def assert_held(self, sent: bytes, conversation: Conversation) -> None:
        """What must hold after any bytes whatsoever."""
        if (
            self.gateway.server.server_state.tasks
        ):  # else nothing is open; the store is asked at the end of all
            await self.gateway.quiet()
        reading = reference.read(sent)
        assert self.vendor.violations == []
        assert_subsequence(self.vendor.requests, reading.requests)
        extra = reading.end in {reference.End.INVALID, reference.End.INCOMPLETE}
        assert len(conversation.answers) <= len(reading.requests) + extra, conversation.statuses
        for answer in conversation.answers:
            self.assert_answer(answer)
        defects, self.gateway.defects[:] = (
            list(self.gateway.defects),
            [],
        )  # told once, not in every case to come
        assert defects == []

    def assert_answer(self, answer: Answer) -> None:
        """An answer of ours is well-formed, names its request, and repeats no token."""
        assert answer.status in OWN_STATUSES, (answer.status, answer.body[:500])
        if answer.status == 200:
            return
        document = orjson.loads(answer.body)
        own_id = answer.headers.get(b"x-automna-request-id", b"").decode()
        if own_id and document.get("type") == "error":  # other dialects have no place for it in a body
            assert own_id == document["request_id"]
        if own_id and document.get("type") == "ErrorResponse":
            assert own_id == document["error"]["id"]
        assert document.get("error") or document["errors"] is not None
        for token in (self.token, self.other, self.revoked):
            assert token.encode() not in answer.body
            assert all(token.encode() not in value for value in answer.headers.values())


def assert_subsequence(reached: Sequence[reference.Request], sent: Iterable[reference.Request]) -> None:
    """What reached the vendor was sent, in that order, each once: method, path, query, body, and headers."""
    remaining = iter(sent)
    for request in reached:
        assert any(_is_same(request, candidate) for candidate in remaining), f"nobody sent {request!r}"


OURS = frozenset(
    {
        *(b"host", b"connection", b"content-length", b"accept-encoding", b"anthropic-version"),
        *(b"x-api-key", b"authorization", b"x-goog-api-key", b"x-subscription-token", b"x-bb-api-key"),
    }
)


def _is_same(reached: reference.Request, sent: reference.Request) -> bool:
    mount, query = mount_of(sent.path), sent.target.partition(b"?")[2]
    ours = (
        OURS if sent.body or sent.path not in EDITED else OURS | {b"content-type"}
    )  # of a body that is made for it
    if mount == b"/api/gemini":
        query = b"&".join(piece for piece in query.split(b"&") if name_of(piece) != b"key")
    return (
        reached.method == sent.method
        and mount + reached.path == sent.path
        and reached.target.partition(b"?")[2] == query
        and is_same_body(reached.body, b"" if sent.method == b"GET" else sent.body, sent.path)
        and all(pair in sent.headers for pair in reached.headers if pair[0] not in ours)
    )


def is_same_body(reached: bytes, sent: bytes, path: bytes) -> bool:
    """Byte for byte; of a chat stream only, one wish may be put in, and then it says what it said; of what costs by the second,
    all but what is edited."""
    if reached == sent:
        return True
    if path in EDITED:
        after, before = (_without(json.loads(body or b"{}"), EDITED[path]) for body in (reached, sent))
        return after == before
    if path not in (CHAT, b"/api/openai/v1/completions"):
        return False
    before, after = json.loads(sent), json.loads(reached)
    options = {**(before.get("stream_options") or {}), "include_usage": True}
    return before.get("stream") is True and after == {**before, "stream_options": options}


def _without(fields: Mapping[str, Any], edited: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in edited}


def mount_of(target: bytes) -> bytes:
    """The mount that a target begins with; the first surface's where it begins with none."""
    path = reference.Request(b"", target, b"", (), b"").path
    return next((mount for mount in MOUNTS if path.startswith(mount + b"/")), b"/api/llm")


def name_of(piece: bytes) -> bytes:
    """A parameter's name, decoded."""
    return unquote_to_bytes(piece.partition(b"=")[0].replace(b"+", b" "))


def chat(**more: Any) -> bytes:
    """A valid chat request's body."""
    return orjson.dumps(
        {"model": "gpt-5.6-sol", "max_completion_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], **more}
    )  # fmt: skip


def response(**more: Any) -> bytes:
    """A valid request for a response."""
    return orjson.dumps({"model": "gpt-5.6-sol", "max_output_tokens": 9, "input": "Hello", **more})


def content(**more: Any) -> bytes:
    """A valid request for content of Gemini's."""
    parts = {
        "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
        "generationConfig": {"maxOutputTokens": 9},
    }
    return orjson.dumps({**parts, **more})


def answers(**more: Any) -> bytes:
    """A valid question for Brave's Answers, which streams."""
    return orjson.dumps({"model": "brave", "messages": [{"role": "user", "content": "Hello"}], **more})


def call(**more: Any) -> bytes:
    """A valid request for a phone call."""
    return orjson.dumps({"phone_number": "+12025550100", "task": "Say hello.", "max_duration": 2, **more})


def session(**more: Any) -> bytes:
    """A valid request for a browser."""
    return orjson.dumps({"timeout": 300, "keepAlive": True, **more})


def small_body(**more: Any) -> bytes:
    """A valid request's body."""
    return orjson.dumps(messages_body(model="claude-haiku-4-5", max_tokens=9, **more))


def others_at(url: str) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": OPENAI_KEY,
        "OPENAI_UPSTREAM_URL": url,
        "GEMINI_API_KEY": GEMINI_KEY,
        "GEMINI_UPSTREAM_URL": url,
        "BRAVE_API_KEY": BRAVE_KEY,
        "BRAVE_UPSTREAM_URL": url,
        "BROWSERBASE_API_KEY": BROWSERBASE_KEY,
        "BROWSERBASE_UPSTREAM_URL": url,
        "BLAND_API_KEY": BLAND_KEY,
        "BLAND_UPSTREAM_URL": url,
        "SWEEP_EVERY_S": "0",
    }


@asynccontextmanager
async def staged(
    folder: Path, *, env: dict[str, str] | None = None, clock: Clock | None = None, **plan: Any
) -> AsyncIterator[Stage]:
    """A stage of its own; clean at its end."""
    plan = {"credits_per_month": CREDITS, **plan}
    async with (
        RecordingVendor().running() as vendor,
        running_gateway(
            folder,
            upstream=vendor.url,
            env={**others_at(vendor.url), "ADMIN_TOKEN": ADMIN_TOKEN, **(env or {})},
            clock=clock,
            **plan,
        ) as gateway,
    ):
        other = await gateway.new_token("other")
        revoked, record = await gateway.directory.create_token("other")
        await gateway.directory.revoke(record.id)
        stage = Stage(gateway, vendor, await gateway.new_token(), other, revoked)
        await stage.give()
        yield stage
        await gateway.assert_clean()
