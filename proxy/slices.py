"""A stream's output in slices: granted ahead of what it shows, so that a large `max_tokens` holds no money that it
does not need, and a stream for which none is granted is cut before it costs more.

How much is written is told from the texts in the bytes that pass, found without reading events: a token for every
`bytes_per_token` bytes, and CALL_TOKENS for each call of a tool. A text counts when its line is whole.
"""

import asyncio
from collections.abc import Awaitable, Callable

from metering.errors import Reason, Refused
from metering.sse import EVENT_BYTES_MAX
from metering.tasks import spawn
from proxy.surface import Slicing

LOOKAHEAD = 4
"""The next slice is asked for when a quarter of a slice is left: some seconds of the fastest model; a commit takes
milliseconds."""
CALL_TOKENS = 50
"""What a call of a tool has beside its name and arguments, at most: 20 to 60 with both, for short ones."""
ATTEMPTS_MAX = 3
"""To write a slice into a store in trouble; each attempt has the ledger's own bound (EXTEND_TIMEOUT_S)."""

CUT_SHORT = "The proxy's ledger is temporarily unavailable: the answer is cut short here."

Extend = Callable[[int, int], Awaitable[Refused | None]]
"""Of so many tokens shown, hold up to so many; the refusal when that is not granted. May be repeated. Raises
Refused(STORE_UNAVAILABLE)."""


class Slices:
    """What one stream may still write. The first slice is granted already."""

    __slots__ = (
        "_asking",
        "_bytes_per_token",
        "_call",
        "_calls",
        "_ceiling_tokens",
        "_extend",
        "_granted_tokens",
        "_refused",
        "_shown_bytes",
        "_slice_tokens",
        "_stream_bytes",
        "_stream_bytes_per_token",
        "_text",
        "_unfinished",
    )

    def __init__(
        self,
        slicing: Slicing,
        *,
        slice_tokens: int,
        ceiling_tokens: int,
        bytes_per_token: int,
        extend: Extend,
    ) -> None:
        """`ceiling_tokens`: the most that may be shown."""
        self._text = slicing.text
        self._call = slicing.call
        self._stream_bytes_per_token = slicing.stream_bytes_per_token
        self._slice_tokens = slice_tokens
        self._ceiling_tokens = ceiling_tokens
        self._bytes_per_token = bytes_per_token
        self._extend = extend
        self._granted_tokens = slice_tokens
        self._shown_bytes = 0
        self._calls = 0
        self._stream_bytes = 0
        self._unfinished = bytearray()
        """The line whose end has not come yet."""
        self._asking: asyncio.Task[None] | None = None
        self._refused: Refused | None = None

    def observe(self, piece: bytes) -> bool:
        """Count what a piece shows, and ask ahead. Whether it may pass at once; if not, see `wait`."""
        self._stream_bytes += len(piece)
        self._count(piece)
        shown_tokens = self._shown_tokens
        if shown_tokens + self._slice_tokens // LOOKAHEAD <= self._granted_tokens or self._is_full:
            return True
        if self._refused is None:
            self._ask_once()
        return shown_tokens <= self._granted_tokens

    async def wait(self) -> Refused | None:
        """Until what has been shown is granted; the refusal when it is not. Asked once more: since a slice was refused
        ahead, others may have given back what they held."""
        if self._asking is not None:
            await asyncio.shield(self._asking)
        if self._shown_tokens > self._granted_tokens and not self._is_full:
            self._refused = None
            await asyncio.shield(self._ask_once(self._slice_tokens // LOOKAHEAD))
        return self._refused if self._shown_tokens > self._granted_tokens and not self._is_full else None

    @property
    def _shown_tokens(self) -> int:
        told = -(-self._shown_bytes // self._bytes_per_token) + self._calls * CALL_TOKENS
        return max(told, self._stream_bytes // self._stream_bytes_per_token)

    @property
    def _is_full(self) -> bool:
        return self._granted_tokens >= self._ceiling_tokens

    def _count(self, piece: bytes) -> None:
        lines = piece if not self._unfinished and piece.endswith(b"\n") else self._lines_with(piece)
        for text in self._text.findall(lines):
            self._shown_bytes += len(text)
        self._calls += len(self._call.findall(lines))

    def _lines_with(self, piece: bytes) -> bytes:
        """The whole lines that a piece completes; what is left of it waits."""
        self._unfinished += piece
        end = self._unfinished.rfind(b"\n", len(self._unfinished) - len(piece)) + 1
        if not end:
            if len(self._unfinished) <= EVENT_BYTES_MAX:
                return b""
            end = len(self._unfinished)  # no vendor's line: it counts as far as it has come
        lines = bytes(self._unfinished[:end])
        del self._unfinished[:end]
        return lines

    def _ask_once(self, ahead_tokens: int | None = None) -> "asyncio.Task[None]":
        if self._asking is None:
            ahead_tokens = self._slice_tokens if ahead_tokens is None else ahead_tokens
            self._asking = spawn(self._ask(ahead_tokens), name="slice of a stream")
        return self._asking

    async def _ask(self, ahead_tokens: int) -> None:
        """Grow the grant to so much beyond what is shown. What has been refused is not asked for again."""
        try:
            if self._refused is None:
                until = max(self._granted_tokens, self._shown_tokens) + ahead_tokens
                await self._ask_for(min(until, self._ceiling_tokens))
        finally:
            self._asking = None

    async def _ask_for(self, until_tokens: int) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                self._refused = await self._extend(self._shown_tokens, until_tokens)
            except Refused as refused:
                if refused.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                if attempt == ATTEMPTS_MAX:
                    self._refused = Refused(refused.reason, CUT_SHORT)
                    return
            else:
                break
        if self._refused is None:
            self._granted_tokens = until_tokens
