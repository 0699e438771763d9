"""What agents do in a soak, how often, and what must come of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from metering.ledger import Outcome
from metering.usage import INPUT, OUTPUT, SEARCHES

PATH = "/api/llm/v1/messages"
CHAT_PATH, RESPONSES_PATH = "/api/openai/v1/chat/completions", "/api/openai/v1/responses"
GEMINI_PATH = "/api/gemini/v1beta/models/gemini-2.5-flash"
BRAVE_PATH = "/api/brave/res/v1"
SMALL_TEXT_BYTES, LARGE_TEXT_BYTES = 1_500, 60_000
MODEL, MINI = "claude-sonnet-4-5", "gpt-4o-mini"
CREDENTIALS = {
    "anthropic": "x-api-key: {}",
    "openai": "authorization: Bearer {}",
    "gemini": "x-goog-api-key: {}",
    "brave": "x-subscription-token: {}",
}
"""By surface: where the gateway token stands."""
PRICES = {
    "anthropic": {INPUT: 3_000, OUTPUT: 15_000},
    "openai": {INPUT: 150, OUTPUT: 600},
    "gemini": {INPUT: 300, OUTPUT: 2_500},
    "brave": {SEARCHES: 5_000_000},
    "brave answers": {SEARCHES: 4_000_000, INPUT: 5_000, OUTPUT: 5_000},
}
"""By surface: list prices of what is asked for, nano-USD a token or a search."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request. `simulate`: how the vendor behaves (its `x-simulate` header)."""

    name: str
    weight: int
    status: int = 200
    """What the client is told, if it stays."""
    simulate: str = ""
    surface: str = "anthropic"
    prices: str = ""
    """Other ones than its surface's."""
    is_streaming: bool = False
    stream_end: bytes = b"event: message_stop"
    """Stands in the last event of a stream, and in no other."""
    is_gzip: bool = False
    method: str = "POST"
    path: str = PATH
    text_bytes: int = SMALL_TEXT_BYTES
    body: bytes | None = None
    """Instead of a message."""
    who: str = "agent"
    """Whose token: `agent`, `poor` (no budget) or `nobody`."""
    leaves_after_bytes: int | None = None
    """Resets the connection when it has so many bytes of the answer; 0: as soon as all is sent."""
    is_cut: bool = False
    """The answer breaks off."""
    outcomes: frozenset[Outcome] = frozenset({Outcome.COMPLETED})
    """Of the entry that names the vendor's request; empty when nothing may reach the vendor."""
    is_exact: bool = True
    """The entry costs what the vendor reported."""

    @property
    def is_dropped(self) -> bool:
        """Ends without an answer."""
        return "drop=" in self.simulate

    @property
    def ends_suddenly(self) -> bool:
        """The vendor closes the connection after the answer without a word before."""
        return "close=1" in self.simulate

    def request(self, token: str) -> bytes:
        """The bytes on the wire."""
        body = self.body if self.body is not None else self._message()
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "host: soak",
            CREDENTIALS[self.surface].format(token),
            "anthropic-version: 2023-06-01",
            f"accept-encoding: {'gzip' if self.is_gzip else 'identity'}",
            f"{KIND_HEADER}: {KINDS.index(self)}",
        ]
        if self.simulate:
            lines.append(f"x-simulate: {self.simulate}")
        if self.method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body if self.method == "POST" else b"")

    def cost_of(self, counts: Mapping[str, int]) -> int:
        """Of what the vendor reports, in nano-USD."""
        prices = PRICES[self.prices or self.surface]
        return sum(prices[unit] * count for unit, count in counts.items())

    def _message(self) -> bytes:
        content = "A robin, I should say, or perhaps a wren. " * (self.text_bytes // 42)
        message = {"model": MODEL, "max_tokens": 512, "messages": [{"role": "user", "content": content}]}
        return orjson.dumps(message | ({"stream": True} if self.is_streaming else {}))


ENDED_OR_LEFT = frozenset({Outcome.COMPLETED, Outcome.CLIENT_LEFT})
FAILED = frozenset({Outcome.UPSTREAM_FAILED})
NEVER_SENT: frozenset[Outcome] = frozenset()

TEXT = "A robin, I should say, or perhaps a wren. " * (SMALL_TEXT_BYTES // 42)


def _chat(name: str, weight: int, simulate: str = "", *, asks: Mapping[str, Any], **more: Any) -> Kind:
    fields = {"model": MINI, "max_completion_tokens": 512, "messages": [{"role": "user", "content": TEXT}]}
    body, end = orjson.dumps({**fields, **asks}), b"data: [DONE]"
    is_streaming = bool(asks.get("stream"))
    return Kind(
        name,
        weight,
        simulate=simulate,
        surface="openai",
        path=CHAT_PATH,
        body=body,
        is_streaming=is_streaming,
        stream_end=end,
        **more,
    )


def _response(name: str, weight: int, simulate: str = "", **asks: Any) -> Kind:
    body = orjson.dumps({"model": MINI, "max_output_tokens": 512, "input": TEXT, **asks})
    return Kind(
        name,
        weight,
        simulate=simulate,
        surface="openai",
        path=RESPONSES_PATH,
        body=body,
        is_streaming=bool(asks.get("stream")),
        stream_end=b"event: response.completed",
    )


def _gemini(name: str, weight: int, method: str, simulate: str = "", **more: Any) -> Kind:
    contents = [{"role": "user", "parts": [{"text": TEXT}]}]
    body = orjson.dumps({"contents": contents, "generationConfig": {"maxOutputTokens": 512}})
    return Kind(
        name,
        weight,
        simulate=simulate,
        surface="gemini",
        path=f"{GEMINI_PATH}:{method}",
        body=body,
        stream_end=b'"finishReason"',
        **more,
    )


def _search(name: str, weight: int, simulate: str = "", **more: Any) -> Kind:
    given = {"method": "GET", "path": f"{BRAVE_PATH}/web/search?q=wren", **more}
    return Kind(name, weight, simulate=simulate, surface="brave", **given)


def _answers(name: str, weight: int, simulate: str = "", *, asks: Mapping[str, Any], **more: Any) -> Kind:
    fields = {"model": "brave", "messages": [{"role": "user", "content": TEXT}], **asks}
    return Kind(
        name,
        weight,
        simulate=simulate,
        surface="brave",
        prices="brave answers",
        path=f"{BRAVE_PATH}/chat/completions",
        body=orjson.dumps(fields),
        is_streaming=bool(asks.get("stream")),
        stream_end=b"data: [DONE]",
        **more,
    )


KINDS = (
    Kind("whole", 400),
    Kind("stream", 150, is_streaming=True, simulate="events=30"),
    Kind("paced stream", 30, is_streaming=True, simulate="events=12,pace_ms=4"),
    Kind("gzip", 40, is_gzip=True, simulate="gzip=1"),
    Kind("gzip stream", 20, is_gzip=True, is_streaming=True, simulate="gzip=1,events=12"),
    Kind("split in odd places", 10, is_streaming=True, simulate="events=12,wire_split=r7"),
    Kind("large", 10, text_bytes=LARGE_TEXT_BYTES),
    Kind("large answer", 5, simulate="bytes=60000"),
    Kind("count tokens", 40, path=PATH + "/count_tokens"),
    Kind("models", 30, method="GET", path="/api/llm/v1/models"),
    Kind("unknown token", 30, status=401, who="nobody", outcomes=NEVER_SENT),
    Kind("unknown path", 20, status=404, path="/api/llm/v1/files", outcomes=NEVER_SENT),
    Kind("not JSON", 20, status=400, body=b'{"model": nonsense', outcomes=NEVER_SENT),
    Kind("no budget", 30, status=402, who="poor", outcomes=NEVER_SENT),
    Kind("vendor 400", 10, status=400, simulate="error_before=400", outcomes=FAILED),
    Kind("vendor 529", 10, status=529, simulate="error_before=529", outcomes=FAILED),
    Kind("vendor drops", 5, status=502, simulate="drop=1", outcomes=FAILED, is_exact=False),
    Kind("vendor resets", 5, status=502, simulate="drop=reset", outcomes=FAILED, is_exact=False),
    Kind(
        "vendor cuts",
        10,
        is_streaming=True,
        simulate="events=12,cut_after=6,cut=reset",
        is_cut=True,
        outcomes=FAILED,
        is_exact=False,
    ),
    Kind(
        "vendor ends too early",
        10,
        is_streaming=True,
        simulate="events=12,cut_after=6,cut=clean",
        is_cut=True,
        outcomes=FAILED,
        is_exact=False,
    ),
    Kind("vendor closes after", 10, is_streaming=True, simulate="events=12,close=1", outcomes=ENDED_OR_LEFT),
    Kind(
        "leaves mid-stream",
        40,
        is_streaming=True,
        simulate="events=20,pace_ms=2",
        leaves_after_bytes=600,
        outcomes=ENDED_OR_LEFT,
    ),
    Kind(
        "leaves before the answer",
        25,
        simulate="delay_ms=20",
        leaves_after_bytes=0,
        outcomes=ENDED_OR_LEFT,
    ),
    _chat("chat", 80, asks={}),
    _chat("chat stream", 40, "events=30", asks={"stream": True, "stream_options": {"include_usage": True}}),
    _chat("chat stream, usage not asked for", 40, "events=12,pace_ms=4", asks={"stream": True}),
    _chat("chat stream in odd places", 10, "events=12,wire_split=r11", asks={"stream": True}),
    _chat(
        "chat cut",
        10,
        "events=12,cut_after=6,cut=reset",
        asks={"stream": True},
        is_cut=True,
        outcomes=FAILED,
        is_exact=False,
    ),
    _chat(
        "chat left",
        10,
        "events=20,pace_ms=2",
        asks={"stream": True},
        leaves_after_bytes=600,
        outcomes=ENDED_OR_LEFT,
    ),
    _response("response", 20),
    _response("response stream", 20, "events=24", stream=True),
    Kind(
        "response of nobody",
        10,
        status=404,
        surface="openai",
        method="GET",
        path=RESPONSES_PATH + "/resp_0",
        outcomes=NEVER_SENT,
    ),
    Kind("openai models", 10, surface="openai", method="GET", path="/api/openai/v1/models"),
    _gemini("gemini", 60, "generateContent"),
    _gemini("gemini stream", 30, "streamGenerateContent?alt=sse", "events=24", is_streaming=True),
    _gemini("gemini list", 30, "streamGenerateContent", "events=12,pace_ms=4", is_streaming=True),
    _gemini(
        "gemini cut",
        10,
        "streamGenerateContent?alt=sse",
        "events=12,cut_after=6,cut=reset",
        is_streaming=True,
        is_cut=True,
        outcomes=FAILED,
        is_exact=False,
    ),
    _gemini("gemini count", 10, "countTokens"),
    _search("search", 60),
    _search("search by POST", 20, method="POST", path=f"{BRAVE_PATH}/web/search", body=b'{"q":"wren"}'),
    _search("search in gzip", 10, "gzip=1", is_gzip=True),
    _search("search fails", 10, "error_before=422", status=422, outcomes=FAILED),
    _search("search drops", 5, "drop=1", status=502, outcomes=FAILED, is_exact=False),
    _search("search cut", 5, "cut_after=200,cut=reset", is_cut=True, outcomes=FAILED, is_exact=False),
    _search("search left", 10, "delay_ms=20", leaves_after_bytes=0, outcomes=ENDED_OR_LEFT),
    _search("no searches", 10, status=402, who="poor", outcomes=NEVER_SENT),
    _answers("answers", 20, "events=24,tag_split=5", asks={"stream": True}),
    _answers("answers whole", 10, asks={"stream": False}),
    _answers("research", 10, "queries=7,events=12,pace_ms=4", asks={"stream": True, "enable_research": True}),
    _answers(
        "answers cut",
        5,
        "events=12,cut_after=6,cut=reset",
        asks={"stream": True},
        is_cut=True,
        outcomes=FAILED,
        is_exact=False,
    ),
)
UNANSWERED = 255
"""Instead of an index: the connection was being closed when the request came, and nobody looked at it."""
KIND_HEADER = "x-soak-kind"
"""Passes through to the vendor: the index in KINDS."""
GEMINI_NAMES, BRAVE_NAMES = "req_gemini_", "req_brave_"
"""What the request ids begin with that the soak's Gemini and Brave give; a number follows."""
