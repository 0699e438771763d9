"""Google Gemini: content generated whole or streamed, embeddings, token counts and the list of models."""

from itertools import product

from metering.usage import INPUT, OUTPUT, Usage, UsageLine
from proxy.meters import Free
from proxy.surface import (
    BEARER,
    Example,
    ForbiddenField,
    HeaderKey,
    Operation,
    QueryKey,
    Surface,
    Upstream,
)
from routes.gemini_errors import GeminiDialect
from routes.gemini_meter import (
    PDF_TOKENS_ENV,
    PROVIDER,
    EmbedMeter,
    GenerateMeter,
    counted_model,
    no_model,
    shown_model,
)
from routes.pdfs import pdf_option

_CACHES = "cached contents are shared by all users of this gateway; send the content with each request."
_HELD_STATE = "what the vendor holds of an earlier answer is not bound to a user; send all contents."
_STORES = "file stores are shared by all users of this gateway; send the content inline."
_SERVERS = "the vendor would call servers of anyone's choosing with our account."


def either_name(path: str, why: str) -> tuple[ForbiddenField, ...]:
    """A field that is forbidden under both names that JSON of protocol buffers has for it, and for all on the way."""
    ways = product(*({key, _snake(key)} for key in path.split(".")))
    return tuple(ForbiddenField(".".join(keys), why) for keys in sorted(ways))


def _snake(name: str) -> str:
    return "".join(f"_{sign.lower()}" if sign.isupper() else sign for sign in name)


FORBIDDEN = (
    *either_name("cachedContent", _CACHES),
    *either_name("continuationToken", _HELD_STATE),
    *either_name("tools.fileSearch", _STORES),
    *either_name("tools.mcpServers", _SERVERS),
)
"""Fields that reach what other users may own (google-genai 3.4.0, `types.py`). Files named by `fileData` are
refused by the meter, which tells them from public URLs."""
FORBIDDEN_IN_COUNTS = (
    *FORBIDDEN,
    *either_name("generateContentRequest.cachedContent", _CACHES),
    *either_name("generateContentRequest.continuationToken", _HELD_STATE),
    *either_name("generateContentRequest.tools.fileSearch", _STORES),
    *either_name("generateContentRequest.tools.mcpServers", _SERVERS),
)

LONG_FIELDS = ("contents", "systemInstruction", "system_instruction", "tools")

_MODELS = "/{version:v1|v1beta|v1alpha}/models"
_ANSWERS = ("alt",)
"""The only parameter of the query that passes: `fields` and its like would cut the usage out of an answer."""
_PAGES = ("alt", "pageSize", "pageToken")

_BODY = (
    b'{"contents":[{"role":"user","parts":[{"text":"Two colours, please."}]}],'
    b'"generationConfig":{"maxOutputTokens":64}}'
)
_FIRST = (
    b'{"candidates":[{"content":{"parts":[{"text":"Teal and"}],"role":"model"},"index":0}],'
    b'"usageMetadata":{"promptTokenCount":6,"totalTokenCount":6},'
    b'"modelVersion":"gemini-2.5-flash","responseId":"example1"}'
)
_LAST = (
    b'{"candidates":[{"content":{"parts":[{"text":" ochre."}],"role":"model"},"finishReason":"STOP","index":0}],'
    b'"usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":5,"totalTokenCount":31,"thoughtsTokenCount":20,'
    b'"serviceTier":"standard"},"modelVersion":"gemini-2.5-flash","responseId":"example1"}'
)
_USED = Usage((UsageLine("gemini-2.5-flash", {INPUT: 6, OUTPUT: 25}),))
_JSON = "application/json; charset=UTF-8"
_EMBEDDED = Usage((UsageLine("gemini-embedding-2", {INPUT: 4}),))


SURFACE = Surface(
    name="gemini",
    provider=PROVIDER,
    mounts=("/api/gemini",),
    upstream=Upstream(
        "https://generativelanguage.googleapis.com",
        url_env="GEMINI_UPSTREAM_URL",
        key_env="GEMINI_API_KEY",
        credential=HeaderKey("x-goog-api-key"),
    ),
    token_places=(HeaderKey("x-goog-api-key"), BEARER, QueryKey("key")),
    options=(pdf_option(PDF_TOKENS_ENV),),
    operations=(
        Operation(
            "POST",
            _MODELS + "/{model}:generateContent",
            meter=GenerateMeter(is_streaming=False),
            forbidden=FORBIDDEN,
            long_fields=LONG_FIELDS,
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-2.5-flash:generateContent",
                body=_BODY,
                answer=_LAST,
                answer_content_type=_JSON,
                usage=_USED,
            ),
        ),
        Operation(
            "POST",
            _MODELS + "/{model}:streamGenerateContent",
            meter=GenerateMeter(is_streaming=True),
            forbidden=FORBIDDEN,
            long_fields=LONG_FIELDS,
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
                body=_BODY,
                answer=b"data: " + _FIRST + b"\r\n\r\ndata: " + _LAST + b"\r\n\r\n",
                answer_content_type="text/event-stream",
                usage=_USED,
            ),
        ),
        Operation(
            "POST",
            _MODELS + "/{model}:embedContent",
            meter=EmbedMeter(),
            forbidden=(),
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-embedding-2:embedContent",
                body=b'{"model":"models/gemini-embedding-2","content":{"parts":[{"text":"Two colours."}]}}',
                answer=b'{"embedding":{"values":[0.01,-0.02]},"usageMetadata":{"promptTokenCount":4}}',
                answer_content_type=_JSON,
                usage=_EMBEDDED,
            ),
        ),
        Operation(
            "POST",
            _MODELS + "/{model}:batchEmbedContents",
            meter=EmbedMeter(),
            forbidden=(),
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-embedding-2:batchEmbedContents",
                body=b'{"requests":[{"model":"models/gemini-embedding-2",'
                b'"content":{"parts":[{"text":"Two colours."}]}}]}',
                answer=b'{"embeddings":[{"values":[0.01,-0.02]}],"usageMetadata":{"promptTokenCount":4,'
                b'"promptTokenDetails":[{"modality":"TEXT","tokenCount":4}]}}',
                answer_content_type=_JSON,
                usage=_EMBEDDED,
            ),
        ),
        Operation(
            "POST",
            _MODELS + "/{model}:countTokens",
            meter=Free(counted_model),
            forbidden=FORBIDDEN_IN_COUNTS,
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-2.5-flash:countTokens",
                body=b'{"contents":[{"parts":[{"text":"Two colours, please."}]}]}',
                answer=b'{"totalTokens":6}',
                answer_content_type=_JSON,
            ),
        ),
        Operation(
            "GET",
            _MODELS,
            meter=Free(no_model),
            query=_PAGES,
            example=Example(
                path="/v1beta/models?pageSize=50",
                answer=b'{"models":[{"name":"models/gemini-2.5-flash","displayName":"Gemini 2.5 Flash"}]}',
                answer_content_type=_JSON,
            ),
        ),
        Operation(
            "GET",
            _MODELS + "/{model}",
            meter=Free(shown_model),
            query=_ANSWERS,
            example=Example(
                path="/v1beta/models/gemini-2.5-flash",
                answer=b'{"name":"models/gemini-2.5-flash","displayName":"Gemini 2.5 Flash"}',
                answer_content_type=_JSON,
            ),
        ),
    ),
    dialect=GeminiDialect(),
    dropped_request_headers=(
        # Field masks (which cut the usage out), projects to bill, and whatever else such a header may choose.
        "x-goog-*",
        "x-http-method",
        "x-method-override",
    ),
    dropped_answer_headers=("x-goog-*",),
)
