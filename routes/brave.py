"""Brave Search: web, context for models, images, videos, news, places, suggestions, spelling, and Answers."""

from metering.usage import INPUT, OUTPUT, SEARCHES, SPELLCHECKS, SUGGESTIONS, Usage, UsageLine
from proxy.meters import Free, PerRequest
from proxy.surface import BEARER, Example, HeaderKey, Operation, Option, Surface, Upstream
from routes.brave_answers import PRODUCT as ANSWERS
from routes.brave_answers import AnswersMeter
from routes.brave_errors import KEY_HEADER, BraveDialect

UNBILLED_ENV = "BRAVE_UNBILLED"
ANSWERS_KEY_ENV = "BRAVE_ANSWERS_API_KEY"
SUGGEST_KEY_ENV = "BRAVE_SUGGEST_API_KEY"
SPELLCHECK_KEY_ENV = "BRAVE_SPELLCHECK_API_KEY"

_QUOTAS = ("searches",)
_SEARCH = PerRequest("search", SEARCHES)
_LOCAL = PerRequest("search", SEARCHES, kind="local", unbilled_option=UNBILLED_ENV)
_RICH = PerRequest("search", SEARCHES, kind="rich", unbilled_option=UNBILLED_ENV)
_ONE_SEARCH = Usage((UsageLine("search", {SEARCHES: 1}),))

_WEB = (
    b'{"type":"search","query":{"original":"teal or ochre","more_results_available":true},'
    b'"web":{"type":"search","results":[{"title":"Teal","url":"https://colours.example/teal",'
    b'"description":"A blue that is green.","age":"2 days ago"}]},"mixed":{"type":"mixed","main":[]}}'
)
_CONTEXT = (
    b'{"grounding":{"generic":[{"url":"https://colours.example/teal","title":"Teal",'
    b'"snippets":["A blue that is green."]}],"map":[]},'
    b'"sources":{"https://colours.example/teal":{"title":"Teal","hostname":"colours.example","age":["2026-11-18"]}}}'
)
_ANSWER_STREAM = b"""data: {"id":"answer-example1","object":"chat.completion.chunk","created":1795000000,\
"model":"brave","choices":[{"index":0,"delta":{"role":"assistant","content":"Teal is a blue."}}]}

data: {"id":"answer-example1","object":"chat.completion.chunk","created":1795000000,"model":"brave",\
"choices":[{"index":0,"delta":{"content":"<usage>{\\"X-Request-Requests\\":1,\\"X-Request-Queries\\":2,\\"X-Requ"}}]}

data: {"id":"answer-example1","object":"chat.completion.chunk","created":1795000000,"model":"brave",\
"choices":[{"index":0,"delta":{"content":"est-Tokens-In\\":9000,\\"X-Request-Tokens-Out\\":12,\
\\"X-Request-Total-Cost\\":0.05306}</usage>"}}]}

data: [DONE]

"""


def _found(kind: str, result: str) -> bytes:
    return f'{{"type":"{kind}","query":{{"original":"teal"}},"results":[{result}]}}'.encode()


def _get(path: str, query: str, answer: bytes, *, meter: PerRequest = _SEARCH) -> Operation:
    example = Example(f"{path}?{query}", answer=answer, usage=_ONE_SEARCH)
    return Operation("GET", path, meter=meter, quotas=_QUOTAS, example=example)


def _either_way(path: str, query: str, body: bytes, answer: bytes) -> tuple[Operation, Operation]:
    """A search whose parameters stand in the query or, for long ones, in a body."""
    example = Example(path, body=body, answer=answer, usage=_ONE_SEARCH)
    posted = Operation("POST", path, meter=_SEARCH, quotas=_QUOTAS, example=example)
    return _get(path, query, answer), posted


def _summarizer(piece: str, answer: bytes) -> Operation:
    """Brave bills the search that the key comes from."""
    path = f"/res/v1/summarizer/{piece}"
    return Operation("GET", path, meter=Free(), example=Example(f"{path}?key=k1", answer=answer))


def _cheap(piece: str, unit: str, key_env: str, example: bytes) -> Operation:
    usage = Usage((UsageLine(piece, {unit: 1}),))
    path = f"/res/v1/{piece}/search"
    return Operation(
        "GET",
        path,
        meter=PerRequest(piece, unit),
        key_env=key_env,
        example=Example(f"{path}?q=tael", answer=example, usage=usage),
    )


SURFACE = Surface(
    name="brave",
    provider="brave",
    mounts=("/api/brave", "/api/search"),
    upstream=Upstream(
        "https://api.search.brave.com",
        url_env="BRAVE_UPSTREAM_URL",
        key_env="BRAVE_API_KEY",
        credential=HeaderKey(KEY_HEADER),
    ),
    token_places=(HeaderKey(KEY_HEADER), BEARER, HeaderKey("x-api-key")),
    operations=(
        *_either_way("/res/v1/web/search", "q=teal+or%20ochre&count=1", b'{"q":"teal or ochre"}', _WEB),
        *_either_way("/res/v1/llm/context", "q=teal", b'{"q":"teal","count":1}', _CONTEXT),
        _get(
            "/res/v1/images/search", "q=teal", _found("images", '{"url":"https://colours.example/teal.png"}')
        ),
        _get(
            "/res/v1/videos/search", "q=teal", _found("videos", '{"url":"https://colours.example/teal.mp4"}')
        ),
        _get("/res/v1/news/search", "q=teal", _found("news", '{"url":"https://colours.example/news"}')),
        _get(
            "/res/v1/local/place_search",
            "q=paint",
            _found("locations", '{"id":"loc1","title":"Paint"}'),
            meter=_LOCAL,
        ),
        _get("/res/v1/local/pois", "ids=loc1", _found("local_pois", '{"id":"loc1"}'), meter=_LOCAL),
        _get(
            "/res/v1/local/descriptions",
            "ids=loc1",
            _found("local_descriptions", '{"id":"loc1"}'),
            meter=_LOCAL,
        ),
        _get("/res/v1/web/rich", "callback_key=c1", _found("rich", '{"type":"rich_result"}'), meter=_RICH),
        _summarizer("search", b'{"type":"summarizer","status":"complete","title":"Teal","summary":[]}'),
        _summarizer("summary", b'{"type":"summarizer","status":"complete","summary":[]}'),
        _summarizer("summary_streaming", b'{"type":"summarizer","status":"complete","summary":[]}'),
        _summarizer("title", b'{"type":"summarizer","title":"Teal"}'),
        _summarizer("enrichments", b'{"type":"summarizer","enrichments":{}}'),
        _summarizer("followups", b'{"type":"summarizer","followups":["Is teal a blue?"]}'),
        _summarizer("entity_info", b'{"type":"summarizer","entities_info":{}}'),
        _cheap(
            "suggest",
            SUGGESTIONS,
            SUGGEST_KEY_ENV,
            b'{"type":"suggest","query":{"original":"tael"},"results":[{"query":"teal"}]}',
        ),
        _cheap(
            "spellcheck",
            SPELLCHECKS,
            SPELLCHECK_KEY_ENV,
            b'{"type":"spellcheck","query":{"original":"tael"},"results":[{"query":"teal"}]}',
        ),
        Operation(
            "POST",
            "/res/v1/chat/completions",
            meter=AnswersMeter(),
            query=(),
            quotas=_QUOTAS,
            key_env=ANSWERS_KEY_ENV,
            example=Example(
                "/res/v1/chat/completions",
                body=b'{"model":"brave","messages":[{"role":"user","content":"Is teal a blue?"}]}',
                answer=_ANSWER_STREAM,
                answer_content_type="text/event-stream",
                usage=Usage((UsageLine(ANSWERS, {SEARCHES: 2, INPUT: 9_000, OUTPUT: 12}),)),
            ),
        ),
    ),
    dialect=BraveDialect(),
    dropped_answer_headers=("x-ratelimit-*",),
    options=(
        Option(
            UNBILLED_ENV,
            "",
            "What Brave does not bill, besides its summarizer: `local` (places), `rich`, or both with a comma.",
            pattern=r"(local|rich)(\s*,\s*(local|rich))*",
            expected="local, rich, or both with a comma",
        ),
    ),
)
