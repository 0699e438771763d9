"""The ways in which a client may ask for an answer, and all in which one differs from the others, as data.

What must come of an exchange is one rule (tables.py); it asks a speech what it needs to know.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import responses
from typing import Any

import orjson

from simulators import anthropic, brave_answers, gemini, openai
from simulators.agentmail_behaviour import CODES as AGENTMAIL_CODES
from simulators.agentmail_behaviour import NAMES as AGENTMAIL_NAMES
from simulators.anthropic_messages import ERROR_TYPES, Content, Message, message_events, message_json
from simulators.anthropic_messages import error_event as anthropic_error_event
from simulators.anthropic_messages import error_json as anthropic_error_json
from simulators.brave_answers import chat_events as brave_events
from simulators.brave_answers import chat_json as brave_json
from simulators.brave_answers import error_json as brave_error_json
from simulators.brave_results import Asked, web
from simulators.gemini_answers import Answer, answer_chunks, answer_json, as_events, as_list
from simulators.gemini_answers import Content as GeminiContent
from simulators.gemini_answers import error_json as gemini_error_json
from simulators.openai_responses import Response
from simulators.openai_shapes import Chunks, Reply, chat_events, chat_json, error_object
from simulators.text import filler

REQUEST_ID = "req_011SimMatrix"
INPUT_TOKENS, OUTPUT_TOKENS = 1_000, 60
"""What every answer reports at its end."""
SYSTEM = "word " * 1_000


@dataclass(frozen=True)
class Dialect:
    """How a vendor's clients ask, and how its errors look to them."""

    vendor: str
    key: bytes
    """The header of the gateway token, up to the token."""
    unreachable: str
    timeout: str
    account: str
    busy: str
    word: str
    """The key in `error` under which one of these stands."""
    event: bytes
    """What an error inside a stream begins with, up to its JSON."""
    error_body: Callable[[int], bytes]
    """As its client is to see it."""
    wrapper: str | None = "error"
    """The key under which an error stands; None where it is the whole body."""

    def said_in(self, error: bytes) -> object:
        """The word of an error."""
        fields = orjson.loads(error)
        return (fields if self.wrapper is None else fields[self.wrapper])[self.word]


@dataclass(frozen=True)
class Speech:
    """One way to ask. Prices in nano-USD a token, and a piece. In `target` and the texts of `fields`, {inbox}, {session} and
    {call} stand for the user's own, and {to} for whom they call."""

    name: str
    dialect: Dialect
    target: bytes
    fields: Mapping[str, Any]
    whole: Callable[[str, int], bytes]
    """A whole answer: by its id and the number of its words."""
    events: Callable[[str, int], list[bytes]] | None
    """A streamed one, None where whole ones are asked for."""
    prices: tuple[int, int] = (0, 0)
    piece_nanousd: int = 0
    method: bytes = b"POST"
    """A GET has no body."""
    counts: tuple[int, int] = (INPUT_TOKENS, OUTPUT_TOKENS)
    """The tokens of input and output that an answer reports at its end."""
    at_start: tuple[int, int] = (0, 0)
    """The tokens of input and output that the first events report."""
    ends_itself: bool = True
    """Something in a stream tells that it is over; else only the end of its framing does."""
    is_sold_whole: bool = False
    """Its price is known when the vendor has answered: nothing in the answer could change it."""
    is_free: bool = False
    """It costs nothing, whatever comes of it."""
    is_asked_again: bool = False
    """An answer that was lost is asked for once more: the vendor does nothing twice."""
    reads_unseen: bool = False
    """The estimate grows with the head: what the vendor reads of its own is in no request."""
    counts_before_end: bool = False
    """The final counts stand before what ends a stream."""
    takes_events: bool = True
    """An event of ours may follow the vendor's."""
    is_list: bool = False
    """A stream is one JSON list instead of events."""
    hands_out_ids: bool = False
    """Events pass when they are whole, and bodies when they have ended."""
    hidden: bytes | None = None
    """What stands in the event that is there only because we asked for it."""
    status: int = 200
    """Of a good answer."""
    ping: bytes = b" "
    error_event: bytes = b""

    @property
    def is_streaming(self) -> bool:
        return self.events is not None

    @property
    def exact_nanousd(self) -> int:
        return self.piece_nanousd + self._cost(*self.counts)

    @property
    def at_start_nanousd(self) -> int:
        return self._cost(*self.at_start)

    def _cost(self, input_tokens: int, output_tokens: int) -> int:
        return input_tokens * self.prices[0] + output_tokens * self.prices[1]

    def body(self) -> bytes:
        """The request's."""
        return orjson.dumps(self.fields) if self.method == b"POST" else b""


# --- Anthropic ------------------------------------------------------------------------------------------


def _message(serial: str, words: int) -> Message:
    usage = anthropic.ReportedUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return Message(f"msg_01{serial}", "claude-sonnet-4-5", Content(filler(words), 10), usage)


_ANTHROPIC = Dialect(
    "anthropic",
    b"x-api-key: ",
    unreachable="api_error",
    timeout="timeout_error",
    account="api_error",
    busy="rate_limit_error",
    word="type",
    event=b"event: error\ndata: ",
    error_body=lambda status: anthropic_error_json(ERROR_TYPES[status], "Simulated \u2713", REQUEST_ID),
)
_MESSAGES = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 1_000,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": "Hello"}],
}
_of_anthropic = functools.partial(
    Speech,
    dialect=_ANTHROPIC,
    target=b"/api/llm/v1/messages",
    prices=(3_000, 15_000),
    whole=lambda serial, words: message_json(_message(serial, words)),
)
WHOLE = _of_anthropic("anthropic whole", fields=_MESSAGES, events=None)
STREAM = _of_anthropic(
    "anthropic stream",
    fields={**_MESSAGES, "stream": True},
    events=lambda serial, words: message_events(_message(serial, words)),
    at_start=(INPUT_TOKENS, 3),
    counts_before_end=True,
    ping=b'event: ping\ndata: {"type": "ping"}\n\n',
    error_event=anthropic_error_event("overloaded_error", "Overloaded", REQUEST_ID),
)

# --- OpenAI ---------------------------------------------------------------------------------------------


def _reply(serial: str, words: int) -> Reply:
    usage = openai.ReportedUsage(prompt_tokens=INPUT_TOKENS, completion_tokens=OUTPUT_TOKENS)
    return Reply(serial, "gpt-4.1-2025-04-14", filler(words), usage, deltas=10)


def _chat_events(serial: str, words: int) -> list[bytes]:
    return chat_events(_reply(f"chatcmpl-{serial}", words), Chunks(includes_usage=True))


def _response(serial: str, words: int) -> Response:
    return Response(_reply(f"resp_{serial}", words))


def _openai_error(status: int) -> bytes:
    return orjson.dumps({"error": error_object(status, "Simulated \u2713")})


_OPENAI = Dialect(
    "openai",
    b"authorization: Bearer ",
    unreachable="server_error",
    timeout="server_error",
    account="server_error",
    busy="requests",
    word="type",
    event=b"data: ",
    error_body=_openai_error,
)
_CHAT = {
    "model": "gpt-4.1",
    "max_completion_tokens": 1_000,
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello"}],
    "stream": True,
}
_of_chat = functools.partial(
    Speech,
    dialect=_OPENAI,
    target=b"/api/openai/v1/chat/completions",
    prices=(2_000, 8_000),
    whole=lambda serial, words: chat_json(_reply(f"chatcmpl-{serial}", words)),
    events=_chat_events,
    counts_before_end=True,
    ping=b": still here\n\n",
    error_event=b"data: " + _openai_error(503) + b"\n\n",
)


CHAT = _of_chat("chat stream", fields={**_CHAT, "stream_options": {"include_usage": True}})
CHAT_UNASKED = _of_chat("chat stream without usage", fields=_CHAT, hidden=b'"prompt_tokens"')
_RESPONSE = {"model": "gpt-4.1", "max_output_tokens": 1_000, "instructions": SYSTEM, "input": "Hello"}
_of_responses = functools.partial(
    Speech,
    dialect=_OPENAI,
    target=b"/api/openai/v1/responses",
    prices=(2_000, 8_000),
    whole=lambda serial, words: _response(serial, words).json(),
    hands_out_ids=True,
)
RESPONSE_STREAM = _of_responses(
    "response stream",
    fields={**_RESPONSE, "stream": True},
    events=lambda serial, words: _response(serial, words).events(),
    ping=b'event: keepalive\ndata: {"type":"keepalive","sequence_number":9}\n\n',
    error_event=b'event: error\ndata: {"type":"error","code":"server_error","message":"Overloaded","param":null,'
    b'"sequence_number":9}\n\n',
)
RESPONSE = _of_responses("response whole", fields=_RESPONSE, events=None)

# --- Gemini ---------------------------------------------------------------------------------------------


def _answer(serial: str, words: int) -> Answer:
    usage = gemini.ReportedUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return Answer(serial, "gemini-2.5-flash", GeminiContent(filler(words), 10), usage)


def _gemini_error(status: int) -> bytes:
    return orjson.dumps(gemini_error_json(status, "Simulated \u2713", None, ()))


_GEMINI = Dialect(
    "gemini",
    b"x-goog-api-key: ",
    unreachable="INTERNAL",
    timeout="DEADLINE_EXCEEDED",
    account="UNAVAILABLE",
    busy="RESOURCE_EXHAUSTED",
    word="status",
    event=b"data: ",
    error_body=_gemini_error,
)
_MODEL = b"/api/gemini/v1beta/models/gemini-2.5-flash:"
_of_gemini = functools.partial(
    Speech,
    dialect=_GEMINI,
    fields={
        "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
        "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "generationConfig": {"maxOutputTokens": 1_000},
    },
    prices=(300, 2_500),
    whole=lambda serial, words: orjson.dumps(answer_json(_answer(serial, words))),
)
GEMINI_EVENTS = _of_gemini(
    "gemini events",
    target=_MODEL + b"streamGenerateContent?alt=sse",
    events=lambda serial, words: as_events(answer_chunks(_answer(serial, words))),
    at_start=(INPUT_TOKENS, 0),
    ends_itself=False,
    ping=b'data: {"candidates":[]}\r\n\r\n',
    error_event=b"data: " + _gemini_error(503) + b"\r\n\r\n",
)
GEMINI_LIST = _of_gemini(
    "gemini list",
    target=_MODEL + b"streamGenerateContent",
    events=lambda serial, words: as_list(answer_chunks(_answer(serial, words))),
    at_start=(INPUT_TOKENS, 0),
    counts_before_end=True,
    takes_events=False,
    is_list=True,
    error_event=b",\r\n" + _gemini_error(503) + b"\n]",
)
GEMINI = _of_gemini("gemini whole", target=_MODEL + b"generateContent", events=None)

# --- Brave ----------------------------------------------------------------------------------------------


def _found(serial: str, words: int) -> bytes:
    asked = Asked(query=serial, count=2, text=filler(words), ids=(), fields={})
    return orjson.dumps(web(asked))


def _answered(serial: str, words: int) -> brave_answers.Reply:
    usage = brave_answers.ReportedUsage(queries=1, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    return brave_answers.Reply(serial, "brave", filler(words), usage, brave_answers.Tags(split=9))


def _brave_error(status: int) -> bytes:
    """Of the request, whatever the status says: nothing in it is the account's but the status."""
    code = brave_answers.RATE_LIMITED if status == 429 else brave_answers.VALIDATION
    return brave_error_json(1, status, code, "Simulated \u2713", {})


_BRAVE = Dialect(
    "brave",
    b"x-subscription-token: ",
    unreachable="INTERNAL",
    timeout="INTERNAL",
    account="INTERNAL",
    busy="RATE_LIMITED",
    word="code",
    event=b"data: ",
    error_body=_brave_error,
)
SEARCH = Speech(
    "search",
    _BRAVE,
    b"/api/brave/res/v1/web/search?q=hello",
    fields={},
    method=b"GET",
    whole=_found,
    events=None,
    piece_nanousd=5_000_000,
    counts=(0, 0),
    is_sold_whole=True,
)
_ANSWERS = {"model": "brave", "messages": [{"role": "user", "content": SYSTEM}]}
_of_answers = functools.partial(
    Speech,
    dialect=_BRAVE,
    target=b"/api/brave/res/v1/chat/completions",
    prices=(5_000, 5_000),
    piece_nanousd=4_000_000,
    whole=lambda serial, words: brave_json(_answered(serial, words)),
    reads_unseen=True,
)
ANSWERS = _of_answers(
    "answers stream",
    fields={**_ANSWERS, "stream": True},
    events=lambda serial, words: brave_events(_answered(serial, words), None)[0],
    ping=b": still here\n\n",
    error_event=b"data: " + _brave_error(503) + b"\n\n",
)
ANSWERS_WHOLE = _of_answers("answers whole", fields={**_ANSWERS, "stream": False}, events=None)

# --- AgentMail ------------------------------------------------------------------------------------------


def _agentmail_error(status: int) -> bytes:
    code = AGENTMAIL_CODES.get(status, "internal_error")
    message = "Not found." if status == 404 else "The vendor refused the request."
    return orjson.dumps({"name": AGENTMAIL_NAMES[code], "code": code, "message": message})


_AGENTMAIL = Dialect(
    "agentmail",
    b"authorization: Bearer ",
    unreachable="internal_error",
    timeout="internal_error",
    account="internal_error",
    busy="rate_limit_exceeded",
    word="code",
    event=b"",
    error_body=_agentmail_error,
    wrapper=None,
)
_of_mail = functools.partial(Speech, dialect=_AGENTMAIL, events=None, counts=(0, 0), is_sold_whole=True)
MAIL_LIST = _of_mail(
    "mail list",
    target=b"/api/agentmail/v0/inboxes/{inbox}/messages",
    fields={},
    method=b"GET",
    whole=lambda serial, words: orjson.dumps(
        {"count": 1, "messages": [{"message_id": f"<{serial}@agentmail.to>", "text": filler(words)}]}
    ),
    is_free=True,
)
MAIL_SEND = _of_mail(
    "mail send",
    target=b"/api/agentmail/v0/inboxes/{inbox}/messages/send",
    fields={"to": ["ann@example.com", "ben@example.com"], "subject": "Hello", "text": SYSTEM},
    whole=lambda serial, words: orjson.dumps(
        {"message_id": f"<{serial}@agentmail.to>", "thread_id": filler(words)}
    ),
    piece_nanousd=4_000_000,
    is_asked_again=True,
)

# --- Browserbase, Bland ---------------------------------------------------------------------------------


def _browserbase_error(status: int) -> bytes:
    phrase = responses.get(status, "Error")
    message = "Not found." if status == 404 else "The vendor refused the request."
    return orjson.dumps({"statusCode": status, "error": phrase, "message": message})


_BROWSERBASE = Dialect(
    "browserbase",
    b"x-bb-api-key: ",
    unreachable="Bad Gateway",
    timeout="Gateway Timeout",
    account="Service Unavailable",
    busy="Too Many Requests",
    word="error",
    event=b"",
    error_body=_browserbase_error,
    wrapper=None,
)
_of_what_runs = functools.partial(
    Speech,
    fields={},
    method=b"GET",
    events=None,
    counts=(0, 0),
    is_sold_whole=True,
    is_free=True,
    hands_out_ids=True,
)
BROWSER = _of_what_runs(
    "browser session",
    dialect=_BROWSERBASE,
    target=b"/api/browserbase/v1/sessions/{session}",
    whole=lambda serial, words: orjson.dumps(
        {"id": serial, "status": "RUNNING", "userMetadata": {"words": filler(words)}}
    ),
)


def _bland_error(status: int) -> bytes:
    return orjson.dumps({"status": "error", "message": f"Simulated \u2713 {status}", "errors": []})


_BLAND = Dialect(
    "bland",
    b"authorization: ",
    unreachable="error",
    timeout="error",
    account="error",
    busy="error",
    word="status",
    event=b"",
    error_body=_bland_error,
    wrapper=None,
)
CALL = _of_what_runs(
    "phone call",
    dialect=_BLAND,
    target=b"/api/bland/v1/calls/{call}",
    whole=lambda serial, words: orjson.dumps(
        {"call_id": serial, "status": "completed", "summary": filler(words)}
    ),
)

# --- what goes on after its answer ----------------------------------------------------------------------

_of_what_is_begun = functools.partial(
    Speech, events=None, counts=(0, 0), is_sold_whole=True, hands_out_ids=True
)
"""Nothing in the answer tells a price: what it has begun is asked about."""
NEW_BROWSER = _of_what_is_begun(
    "new browser session",
    dialect=_BROWSERBASE,
    target=b"/api/browserbase/v1/sessions",
    fields={"keepAlive": True, "timeout": 3_600},
    whole=lambda serial, words: orjson.dumps(
        {"id": serial, "status": "RUNNING", "userMetadata": {"words": filler(words)}}
    ),
    status=201,
)
NEW_CALL = _of_what_is_begun(
    "new phone call",
    dialect=_BLAND,
    target=b"/api/bland/v1/calls",
    fields={"phone_number": "{to}", "task": "Say hello.", "max_duration": 30},
    whole=lambda serial, words: orjson.dumps(
        {"status": "success", "call_id": serial, "message": filler(words)}
    ),
)

SPEECHES = (
    *(STREAM, WHOLE),
    *(CHAT, CHAT_UNASKED, RESPONSE_STREAM, RESPONSE),
    *(GEMINI_EVENTS, GEMINI_LIST, GEMINI),
    *(SEARCH, ANSWERS, ANSWERS_WHOLE),
    *(MAIL_LIST, MAIL_SEND),
    *(BROWSER, CALL),
)
