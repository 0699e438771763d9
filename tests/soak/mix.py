"""What agents do in a soak, how often, and what must come of it."""

from dataclasses import dataclass

import orjson

from metering.ledger import Outcome

PATH = "/api/llm/v1/messages"
SMALL_TEXT_BYTES, LARGE_TEXT_BYTES = 1_500, 60_000
MODEL = "claude-sonnet-4-5"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request. `simulate`: how the vendor behaves (its `x-simulate` header)."""

    name: str
    weight: int
    status: int = 200
    """What the client is told, if it stays."""
    simulate: str = ""
    is_streaming: bool = False
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
            f"x-api-key: {token}",
            "anthropic-version: 2023-06-01",
            f"accept-encoding: {'gzip' if self.is_gzip else 'identity'}",
            f"{KIND_HEADER}: {KINDS.index(self)}",
        ]
        if self.simulate:
            lines.append(f"x-simulate: {self.simulate}")
        if self.method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body if self.method == "POST" else b"")

    def _message(self) -> bytes:
        content = "A robin, I should say, or perhaps a wren. " * (self.text_bytes // 42)
        message = {"model": MODEL, "max_tokens": 512, "messages": [{"role": "user", "content": content}]}
        return orjson.dumps(message | ({"stream": True} if self.is_streaming else {}))


ENDED_OR_LEFT = frozenset({Outcome.COMPLETED, Outcome.CLIENT_LEFT})
FAILED = frozenset({Outcome.UPSTREAM_FAILED})
NEVER_SENT: frozenset[Outcome] = frozenset()

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
)
UNANSWERED = 255
"""Instead of an index: the connection was being closed when the request came, and nobody looked at it."""
KIND_HEADER = "x-soak-kind"
"""Passes through to the vendor: the index in KINDS."""
