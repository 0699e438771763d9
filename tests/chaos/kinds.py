"""Every kind of request that agents send: what is sent to which surface, how the vendor answers, what it must hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from metering.usage import INPUT, OUTPUT, SEARCHES, SUGGESTIONS
from tests.support.gateway import messages_body
from tests.support.kill_points import TAG
from tests.support.openai import chat_body, response_body

BODY_BYTES_PER_TOKEN = 2
CONTEXT_TOKENS = 128_000
"""Of gpt-4o-mini: held whole where content grows out of sight."""
TOO_MANY_TOKENS = 32_000
"""An output of OPUS that no budget of a round can cover."""
ANSWER_TOKENS = 8_192
"""Held for what Brave's answers write, of which nobody says how much it may be."""
READ_TOKENS = 16_384
"""Held for what one query of an answer reads."""


@dataclass(frozen=True, slots=True)
class Rates:
    """List prices of one model, nano-USD a token, and of what is sold by the piece, nano-USD each."""

    input_nanousd: int = 0
    output_nanousd: int = 0
    pieces: Mapping[str, int] = field(default_factory=dict)

    def cost_of(self, counts: Mapping[str, int]) -> int:
        """Of what a vendor reported. KeyError for what the model does not charge."""
        prices = {INPUT: self.input_nanousd, OUTPUT: self.output_nanousd, **self.pieces}
        return sum(prices[unit] * count for unit, count in counts.items())


SONNET, SONNET_RATES = "claude-sonnet-4-5", Rates(3_000, 15_000)
OPUS, OPUS_RATES = "claude-opus-4-1", Rates(15_000, 75_000)
MINI, MINI_RATES = "gpt-4o-mini", Rates(150, 600)
EMBEDDER, EMBEDDER_RATES = "text-embedding-3-small", Rates(20)
FLASH, FLASH_RATES = "gemini-2.5-flash", Rates(300, 2_500)
GEMINI_EMBEDDER, GEMINI_EMBEDDER_RATES = "gemini-embedding-001", Rates(150)
SEARCH_RATES = Rates(pieces={SEARCHES: 5_000_000})
SUGGEST_RATES = Rates(pieces={SUGGESTIONS: 500_000})
ANSWERS_RATES = Rates(5_000, 5_000, {SEARCHES: 4_000_000})


@dataclass(frozen=True, slots=True)
class Surface:
    """Where a vendor is mounted, and where its gateway token stands."""

    mount: str
    credential: str
    headers: Mapping[str, str]


SURFACES = {
    "anthropic": Surface("/api/llm", "x-api-key: {}", {"anthropic-version": "2023-06-01"}),
    "openai": Surface("/api/openai", "authorization: Bearer {}", {}),
    "gemini": Surface("/api/gemini", "x-goog-api-key: {}", {}),
    "brave": Surface("/api/brave", "x-subscription-token: {}", {}),
}

Body = Callable[[int, str], dict[str, Any]]
"""The fields of a body, by its size and the object that it names. The size is the output allowed, or, where nothing is
written, tokens' worth of text: a request's hold tells which it is."""

OWN, OWN_ENDED, OWN_ITEM = "own", "own, ended", "own, an item"
"""A response, one that is not at work any more, or an item that some agent of the same user has seen."""
FOREIGN, FOREIGN_ITEM, UNKNOWN = "another's", "another's item", "nobody's"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: what is sent, how the vendor is told to answer (`x-simulate`), what comes of it."""

    name: str
    simulate: str = ""
    method: str = "POST"
    path: str = "/v1/messages"
    surface: str = "anthropic"
    rates: Rates = SONNET_RATES
    body: Body | None = None
    """None: a message, or for a GET nothing."""
    names: str = ""
    """Whose object it names: in the body, or at {id} in the path."""
    is_streaming: bool = False
    is_free: bool = False
    is_deferred: bool = False
    """Its work goes on after its answer: its entry comes later."""
    is_unbounded: bool = False
    """It is held at a full context."""
    piece: str = ""
    """What it is sold by, one for each request: all of a kind hold the same."""
    queries: int = 0
    """Searches that an answer may run, which count against the quota."""
    read_tokens: int = 0
    """What these may read in all."""
    wants_gzip: bool = False
    max_tokens: int | None = None
    status: int = 200
    """What the client is told."""
    is_refused: bool = False
    """By us: nothing goes to the vendor, nothing is held."""
    is_scarce: bool = False
    """May be refused by us, as there are fewer searches than who wants one: used up, or held by others."""
    is_exact: bool = True
    """Settled, it is booked as reported; otherwise it can only be estimated."""
    cuts_off: bool = False
    """The client sees an answer that breaks off."""
    leaves: bool = False
    reads_slowly: bool = False
    uploads_slowly: bool = False

    @property
    def searches(self) -> int:
        """What it holds of the quota."""
        return self.queries or (self.piece == SEARCHES)


def _chat(**more: Any) -> Body:
    return lambda size, _: {**chat_body(model=MINI, **more), "max_completion_tokens": size}


def _response(**more: Any) -> Body:
    return lambda size, _: {**response_body(model=MINI, **more), "max_output_tokens": size}


def _continued(size: int, named: str) -> dict[str, Any]:
    return {**response_body(model=MINI, previous_response_id=named), "max_output_tokens": size}


def _referring(size: int, named: str) -> dict[str, Any]:
    items = [{"type": "item_reference", "id": named}, {"role": "user", "content": "Another two."}]
    return {**response_body(model=MINI, input=items), "max_output_tokens": size}


def _counted(_: int, __: str) -> dict[str, Any]:
    return {"model": MINI, "input": "Two colours, please."}


def _embedded(size: int, _: str) -> dict[str, Any]:
    return {"model": EMBEDDER, "input": _text_of(size)}


def _contents(size: int, _: str) -> dict[str, Any]:
    parts = [{"text": "Two colours, please."}]
    return {"contents": [{"role": "user", "parts": parts}], "generationConfig": {"maxOutputTokens": size}}


def _gemini_counted(_: int, __: str) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": "Two colours, please."}]}]}


def _gemini_embedded(size: int, _: str) -> dict[str, Any]:
    return {"content": {"parts": [{"text": _text_of(size)}]}}


def costly(size: int, _: str) -> dict[str, Any]:
    """A message of the model whose output costs most, so that one can ask for all that a budget has."""
    return messages_body(model=OPUS, max_tokens=size)


def _searched(_: int, __: str) -> dict[str, Any]:
    return {"q": "wren", "count": 2}


def _asked(**more: Any) -> Body:
    def body(size: int, _: str) -> dict[str, Any]:
        return {"model": "brave", "messages": [{"role": "user", "content": _text_of(size)}], **more}

    return body


def _text_of(tokens: int) -> str:
    return "ab" * tokens


def _openai(name: str, simulate: str = "", *, path: str = "/v1/chat/completions", **more: Any) -> Kind:
    return Kind(name, simulate, path=path, **{"surface": "openai", "rates": MINI_RATES, **more})


def _responses(name: str, simulate: str = "", *, body: Body = _response(), **more: Any) -> Kind:  # noqa: B008 - a pure function
    return _openai(name, simulate, path="/v1/responses", body=body, **more)


def _kept(name: str, names: str, *, query: str = "", **more: Any) -> Kind:
    path = "/v1/responses/{id}" + query
    return _openai(name, path=path, method="GET", names=names, **more)


def _gemini(name: str, method: str, simulate: str = "", *, model: str = FLASH, **more: Any) -> Kind:
    path = f"/v1beta/models/{model}:{method}"
    return Kind(
        name, simulate, path=path, **{"surface": "gemini", "rates": FLASH_RATES, "body": _contents, **more}
    )


def _search(name: str, simulate: str = "", **more: Any) -> Kind:
    given = {"method": "GET", "path": "/res/v1/web/search?q=wren", "rates": SEARCH_RATES, "piece": SEARCHES}
    return Kind(name, simulate, surface="brave", **{**given, **more})


def _answers(name: str, simulate: str = "", *, body: Body, **more: Any) -> Kind:
    given = {"queries": 1, "read_tokens": READ_TOKENS, "rates": ANSWERS_RATES, **more}
    return Kind(name, simulate, path="/res/v1/chat/completions", surface="brave", body=body, **given)


def _research(name: str, simulate: str = "", **more: Any) -> Kind:
    """Of at most three queries, each of which may read 200 tokens, twice."""
    asked = _asked(
        enable_research=True,
        research_maximum_number_of_queries=3,
        research_maximum_number_of_tokens_per_query=200,
    )
    return _answers(name, simulate, body=asked, is_streaming=True, queries=3, read_tokens=3 * 2 * 200, **more)


ANTHROPIC_KINDS = (
    Kind("stream", "events=15,pace_ms=15,delay_ms=10", is_streaming=True),
    Kind("burst", "events=30", is_streaming=True),
    Kind("whole", "delay_ms=30"),
    Kind("gzip", "events=12,pace_ms=10,gzip=1", is_streaming=True, wants_gzip=True),
    Kind("gzip-whole", "delay_ms=20,gzip=1", wants_gzip=True),
    Kind("count", path="/v1/messages/count_tokens", is_free=True),
    Kind("models", method="GET", path="/v1/models", is_free=True),
    Kind(
        "refused",
        body=costly,
        rates=OPUS_RATES,
        max_tokens=TOO_MANY_TOKENS,
        status=402,
        is_refused=True,
    ),
    Kind("leaves", "events=15,pace_ms=20", is_streaming=True, leaves=True),
    Kind("slow", "events=60,bytes=6000000", is_streaming=True, reads_slowly=True),
    Kind("upload", "delay_ms=10", uploads_slowly=True),
    Kind("silent", "events=8,delay_ms=500", is_streaming=True),
    Kind("error", "error_before=500", status=500),
    Kind("long-error", "error_before=500,split=1", status=500),
    Kind("late-error", "error_before=500,delay_ms=500", is_streaming=True),  # told inside the stream
    Kind("late-drop", "delay_ms=500,drop=1", is_streaming=True, is_exact=False),
    Kind("event-error", "events=15,pace_ms=10,error_after=6", is_streaming=True, is_exact=False),
    Kind("cut", "events=15,pace_ms=10,cut_after=8", is_streaming=True, is_exact=False, cuts_off=True),
    Kind("cut-whole", "delay_ms=10,cut_after=200", is_exact=False, cuts_off=True),
    Kind("dropped", "drop=1", is_exact=False, status=502),
)
OPENAI_KINDS = (
    _openai(
        "chat-asked",
        "events=15,pace_ms=15",
        body=_chat(stream=True, stream_options={"include_usage": True}),
        is_streaming=True,
    ),
    _openai("chat-unasked", "events=15,pace_ms=15", body=_chat(stream=True), is_streaming=True),
    _openai("chat-whole", "delay_ms=20", body=_chat()),
    _openai("chat-error", "error_before=500", body=_chat(), status=500),
    _openai(
        "chat-cut",
        "events=15,pace_ms=10,cut_after=8",
        body=_chat(stream=True),
        is_streaming=True,
        is_exact=False,
        cuts_off=True,
    ),
    _responses("response", "delay_ms=20"),
    _responses("response-stream", "events=20,pace_ms=15", body=_response(stream=True), is_streaming=True),
    _responses("response-silent", "events=20,delay_ms=500", body=_response(stream=True), is_streaming=True),
    _responses(
        "response-leaves",
        "events=20,pace_ms=15",
        body=_response(stream=True),
        is_streaming=True,
        leaves=True,
    ),
    _responses(
        "response-slow",
        "events=60,bytes=2000000",
        body=_response(stream=True),
        is_streaming=True,
        reads_slowly=True,
    ),
    _responses(
        "response-cut",
        "events=20,pace_ms=10,cut_after=8",
        body=_response(stream=True),
        is_streaming=True,
        is_exact=False,
        cuts_off=True,
    ),
    _responses("continued", "delay_ms=10", body=_continued, names=OWN_ENDED, is_unbounded=True),
    _responses("referring", "delay_ms=10", body=_referring, names=OWN_ITEM, is_unbounded=True),
    _responses("background", "delay_ms=10,polls=1", body=_response(background=True), is_deferred=True),
    _responses(
        "background-stream",
        "events=20,polls=1",
        body=_response(background=True, stream=True),
        is_streaming=True,
        is_deferred=True,
        leaves=True,
    ),
    _openai("embed", path="/v1/embeddings", body=_embedded, rates=EMBEDDER_RATES),
    _openai("openai-models", path="/v1/models", method="GET", is_free=True),
    _openai("openai-count", path="/v1/responses/input_tokens", body=_counted, is_free=True),
    _kept("again", OWN, is_free=True),
    _kept("again-stream", OWN_ENDED, query="?stream=true", is_free=True),
    _kept("foreign", FOREIGN, status=404, is_refused=True),
    _kept("unknown", UNKNOWN, status=404, is_refused=True),
    _responses("foreign-continued", body=_continued, names=FOREIGN, status=404, is_refused=True),
    _responses("foreign-referring", body=_referring, names=FOREIGN_ITEM, status=404, is_refused=True),
)
GEMINI_KINDS = (
    _gemini("gemini", "generateContent", "delay_ms=20"),
    _gemini("gemini-stream", "streamGenerateContent?alt=sse", "events=15,pace_ms=15", is_streaming=True),
    _gemini("gemini-list", "streamGenerateContent", "events=15,pace_ms=15", is_streaming=True),
    _gemini(
        "gemini-leaves",
        "streamGenerateContent?alt=sse",
        "events=15,pace_ms=15",
        is_streaming=True,
        leaves=True,
    ),
    _gemini(
        "gemini-cut",
        "streamGenerateContent?alt=sse",
        "events=15,pace_ms=10,cut_after=8",
        is_streaming=True,
        is_exact=False,
        cuts_off=True,
    ),
    _gemini(
        "gemini-list-cut",
        "streamGenerateContent",
        "events=15,pace_ms=10,cut_after=8",
        is_streaming=True,
        is_exact=False,
        cuts_off=True,
    ),
    _gemini("gemini-error", "generateContent", "error_before=500", status=500),
    _gemini(
        "gemini-embed",
        "embedContent",
        model=GEMINI_EMBEDDER,
        body=_gemini_embedded,
        rates=GEMINI_EMBEDDER_RATES,
    ),
    _gemini("gemini-count", "countTokens", body=_gemini_counted, is_free=True),
    Kind("gemini-models", method="GET", path="/v1beta/models", surface="gemini", is_free=True),
)
BRAVE_KINDS = (
    _search("search", "delay_ms=20"),
    _search("search-posted", "delay_ms=20", method="POST", path="/res/v1/web/search", body=_searched),
    _search("search-gzip", "results=20,gzip=1", path="/res/v1/web/search?q=wren&count=20", wants_gzip=True),
    _search("search-error", "error_before=500", status=500),
    _search("search-cut", "delay_ms=10,cut_after=200", is_exact=False, cuts_off=True),
    _search("search-dropped", "drop=1", status=502, is_exact=False),
    _search("suggested", path="/res/v1/suggest/search?q=wren", rates=SUGGEST_RATES, piece=SUGGESTIONS),
    _answers(
        "answers",
        "events=15,pace_ms=15,tag_split=7",
        body=_asked(enable_citations=True),
        is_streaming=True,
    ),
    _answers("answers-whole", "delay_ms=20", body=_asked(stream=False)),
    _research("research", "queries=2,events=15,pace_ms=15"),
    _research("research-leaves", "queries=2,events=15,pace_ms=15", leaves=True),
    _research("research-cut", "events=15,pace_ms=10,cut_after=8", is_exact=False, cuts_off=True),
)
SCARCE_KINDS = (
    _search("scarce", "delay_ms=200", is_scarce=True),
    _search("scarce-quick", "delay_ms=20", is_scarce=True),
    _search("scarce-error", "delay_ms=50,error_before=500", status=500, is_scarce=True),
    _research("scarce-research", "queries=2,events=15,pace_ms=15", is_scarce=True),
)
"""For who has few searches."""
KINDS = {
    kind.name: kind for kind in (*ANTHROPIC_KINDS, *OPENAI_KINDS, *GEMINI_KINDS, *BRAVE_KINDS, *SCARCE_KINDS)
}
MIX = (
    *("stream",) * 6,
    *("whole", "gzip", "leaves") * 2,
    *("burst", "gzip-whole", "count", "models", "refused", "slow", "upload", "silent"),
    *("error", "long-error", "late-error", "late-drop", "event-error", "cut", "cut-whole", "dropped"),
    *("response-stream", "background", "again") * 2,
    *(kind.name for kind in OPENAI_KINDS),
    *("gemini-stream", "gemini-list"),
    *(kind.name for kind in GEMINI_KINDS),
    *(kind.name for kind in BRAVE_KINDS),
)
"""What agents choose from."""
FEW_SEARCHES_MIX = (
    *("scarce", "scarce-quick") * 3,
    *("scarce-error", "scarce-research", "suggested", "stream"),
)
"""What those choose from who have few searches."""


def body_of(kind: Kind, size: int, named: str = "") -> bytes:
    """The bytes of a body; `named` is the id of the object that it names."""
    if kind.method == "GET":
        return b""
    if kind.body is not None:
        return orjson.dumps(kind.body(size, named))
    return orjson.dumps(messages_body(stream=kind.is_streaming, max_tokens=size))


def hold_of(kind: Kind, size: int, named: str = "") -> int:
    """Input at a token for two bytes of body (or a full context), and all the output that is allowed, in nano-USD. What
    is sold by the piece holds its price."""
    if kind.is_free:
        return 0
    if kind.piece:
        return kind.rates.cost_of({kind.piece: 1})
    tokens = -(-len(body_of(kind, size, named)) // BODY_BYTES_PER_TOKEN)
    if kind.queries:
        most = {SEARCHES: kind.queries, INPUT: tokens + kind.read_tokens, OUTPUT: ANSWER_TOKENS}
        return kind.rates.cost_of(most)
    prompt = CONTEXT_TOKENS if kind.is_unbounded else tokens
    return prompt * kind.rates.input_nanousd + size * kind.rates.output_nanousd


def request_head(kind: Kind, token: str, tag: str, body_bytes: int, named: str = "") -> bytes:
    """The head of a request up to its empty line; TAG tells it from others in the vendor's record."""
    surface = SURFACES[kind.surface]
    headers = {
        "host": "proxy",
        **surface.headers,
        TAG.decode(): tag,
        "x-simulate": kind.simulate,
        "accept-encoding": "gzip" if kind.wants_gzip else "identity",
        "content-length": str(body_bytes),
        "content-type": "application/json",
    }
    lines = [
        f"{kind.method} {surface.mount}{kind.path.replace('{id}', named)} HTTP/1.1",
        surface.credential.format(token),
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()
