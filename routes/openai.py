"""OpenAI: chat completions, responses, completions, embeddings, moderations, token counts and the list of models."""

from metering.usage import CACHE_READ, INPUT, OUTPUT, WEB_SEARCHES, Usage, UsageLine
from proxy.meters import Free
from proxy.surface import (
    BEARER,
    Deferred,
    Ending,
    Example,
    ForbiddenField,
    HandsOut,
    Names,
    Operation,
    Option,
    Surface,
    Upstream,
)
from routes.openai_chat import ChatMeter, CompletionsMeter, EmbeddingsMeter, speaks
from routes.openai_errors import OpenAIDialect
from routes.openai_request import DEFAULT_TIER, DEFAULT_TIER_ENV, PROVIDER, REGION_ENV
from routes.openai_responses import (
    CompactMeter,
    ReplayMeter,
    ResponsesMeter,
    counted_models_of,
    is_kept,
    is_reference,
)
from routes.openai_usage import is_running

_FILES = "the vendor's files are shared by all users of this gateway; send the content inline."
_HELD_STATE = (
    "a conversation held by the vendor is not bound to a user; send all items, or a previous response."
)
_CONTAINERS = "containers are shared by all users of this gateway."

FORBIDDEN_IN_CHAT = (
    ForbiddenField("messages.**.file.file_id", _FILES),
    ForbiddenField("audio.voice.id", "voices of one's own belong to the account, not to one user."),
)
FORBIDDEN_IN_RESPONSES = (
    ForbiddenField("conversation", _HELD_STATE),
    ForbiddenField(
        "prompt", "prompts kept by the vendor are shared by all users of this gateway; send the text."
    ),
    ForbiddenField("access_programs", "which programs the account takes part in is decided by the gateway."),
    ForbiddenField("input.file_id", _FILES),
    ForbiddenField("input.**.content.file_id", _FILES),
    ForbiddenField("input.**.output.file_id", _FILES),
    ForbiddenField("input.**.environment.container_id", _CONTAINERS),
    ForbiddenField("input.container_id", _CONTAINERS),
)
"""Fields that reach what other users may own (Python SDK 3.52.0, `types/chat` and `types/responses`). A `file_id`
stands in the parts of a content or an output; in the arguments or the schema of somebody's own tool it is
harmless, so it is not forbidden at any depth. Tools that reach stores, containers or servers are refused by type."""

LONG_FIELDS_OF_RESPONSES = ("input", "instructions", "tools")

RESPONSE, ITEM, AUDIO = "response", "item", "audio"
"""Kinds of objects that the vendor keeps."""

_ITEM_WORDS = "Item with id '{id}' not found."
_NAMED_RESPONSE = (
    Names(
        RESPONSE,
        "Previous response with id '{id}' not found.",
        body_field="previous_response_id",
        facts={"param": "previous_response_id", "code": "previous_response_not_found"},
    ),
    Names(
        RESPONSE,
        "Response with id '{id}' not found.",
        body_field="prompt_cache_options.comparison_response_id",
        facts={"param": "prompt_cache_options.comparison_response_id"},
    ),
)
_NAMED_ITEMS = (
    # Clients give ids of their own to items that carry their content; what only refers must be the user's.
    Names(ITEM, _ITEM_WORDS, body_field="input.id", may_be_unknown=True, facts={"param": "input"}),
    Names(ITEM, _ITEM_WORDS, body_field="input.id", when=is_reference, facts={"param": "input"}),
)
_NAMED_IN_PATH = (
    Names(RESPONSE, "Response with id '{id}' not found.", path_param="response_id", facts={"param": "id"}),
)
_KEPT_RESPONSE = (
    HandsOut(RESPONSE, "id", when=is_kept),
    HandsOut(RESPONSE, "response.id", when=is_kept),
    HandsOut(ITEM, "output.id", when=is_kept),
    HandsOut(ITEM, "item.id", when=is_kept),
    HandsOut(ITEM, "response.output.id", when=is_kept),
)

_CHAT_STREAM = b"""data: {"id":"chatcmpl-example1","object":"chat.completion.chunk","created":1795000000,\
"model":"gpt-5.6-sol","service_tier":"default","choices":[{"index":0,"delta":{"role":"assistant","content":""},\
"finish_reason":null}],"usage":null}

data: {"id":"chatcmpl-example1","object":"chat.completion.chunk","created":1795000000,\
"model":"gpt-5.6-sol","service_tier":"default","choices":[{"index":0,"delta":{"content":"Red and blue."},\
"finish_reason":null}],"usage":null}

data: {"id":"chatcmpl-example1","object":"chat.completion.chunk","created":1795000000,\
"model":"gpt-5.6-sol","service_tier":"default","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],\
"usage":null}

data: {"id":"chatcmpl-example1","object":"chat.completion.chunk","created":1795000000,\
"model":"gpt-5.6-sol","service_tier":"default","choices":[],"usage":{"prompt_tokens":1300,"completion_tokens":9,\
"total_tokens":1309,"prompt_tokens_details":{"cached_tokens":1280,"audio_tokens":0},\
"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}}

data: [DONE]

"""

_RESPONSE = (
    b'{"id":"resp_example1","object":"response","created_at":1795000000,"status":"completed","error":null,'
    b'"incomplete_details":null,"model":"gpt-5.6-sol","output":[{"id":"ws_example1","type":"web_search_call",'
    b'"status":"completed","action":{"type":"search","query":"two colours"}},{"id":"msg_example1",'
    b'"type":"message","status":"completed","role":"assistant","content":[{"type":"output_text",'
    b'"text":"Red and blue.","annotations":[]}]}],"service_tier":"default","store":true,'
    b'"usage":{"input_tokens":320,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},'
    b'"output_tokens":40,"output_tokens_details":{"reasoning_tokens":24},"total_tokens":360},'
    b'"tool_usage":{"image_gen":{"input_tokens":0,"output_tokens":0,"total_tokens":0},'
    b'"web_search":{"num_requests":1}}}'
)
_COMPACTED = (
    b'{"id":"resp_example2","object":"response.compaction","created_at":1795000000,'
    b'"output":[{"id":"cmp_example1","type":"compaction","encrypted_content":"c2hvcnQ="}],'
    b'"usage":{"input_tokens":200,"input_tokens_details":{"cached_tokens":0},"output_tokens":30,'
    b'"output_tokens_details":{"reasoning_tokens":0},"total_tokens":230}}'
)

SURFACE = Surface(
    name="openai",
    provider=PROVIDER,
    mounts=("/api/openai",),
    upstream=Upstream(
        "https://api.openai.com",
        url_env="OPENAI_UPSTREAM_URL",
        key_env="OPENAI_API_KEY",
        credential=BEARER,
    ),
    token_places=(BEARER,),
    operations=(
        Operation(
            "POST",
            "/v1/chat/completions",
            meter=ChatMeter(),
            forbidden=FORBIDDEN_IN_CHAT,
            long_fields=("messages", "tools"),
            query=(),
            names=(Names(AUDIO, "Audio with id '{id}' not found.", body_field="messages.audio.id"),),
            hands_out=(
                HandsOut(AUDIO, "choices.message.audio.id", when=speaks),
                HandsOut(AUDIO, "choices.delta.audio.id", when=speaks),
            ),
            example=Example(
                path="/v1/chat/completions",
                body=b'{"model":"gpt-5.6-sol","max_completion_tokens":64,"stream":true,'
                b'"stream_options":{"include_usage":true},'
                b'"messages":[{"role":"user","content":"Two colours, please."}]}',
                answer=_CHAT_STREAM,
                answer_content_type="text/event-stream; charset=utf-8",
                usage=Usage((UsageLine("gpt-5.6-sol", {INPUT: 20, CACHE_READ: 1280, OUTPUT: 9}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/responses",
            meter=ResponsesMeter(),
            forbidden=FORBIDDEN_IN_RESPONSES,
            long_fields=LONG_FIELDS_OF_RESPONSES,
            query=(),
            names=(*_NAMED_RESPONSE, *_NAMED_ITEMS),
            hands_out=_KEPT_RESPONSE,
            deferred=Deferred(
                RESPONSE,
                "/v1/responses/{id}",
                is_running=is_running,
                ending=Ending("POST", "/v1/responses/{id}/cancel"),
            ),
            example=Example(
                path="/v1/responses",
                body=b'{"model":"gpt-5.6-sol","max_output_tokens":64,"max_tool_calls":1,'
                b'"tools":[{"type":"web_search"}],"input":"Two colours, please."}',
                answer=_RESPONSE,
                usage=Usage((UsageLine("gpt-5.6-sol", {INPUT: 320, OUTPUT: 40, WEB_SEARCHES: 1}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/responses/compact",
            meter=CompactMeter(),
            forbidden=FORBIDDEN_IN_RESPONSES,
            long_fields=LONG_FIELDS_OF_RESPONSES,
            query=(),
            names=(*_NAMED_RESPONSE, *_NAMED_ITEMS),
            hands_out=_KEPT_RESPONSE,
            example=Example(
                path="/v1/responses/compact",
                body=b'{"model":"gpt-5.6-sol","input":[{"role":"user","content":"Two colours, please."}]}',
                answer=_COMPACTED,
                usage=Usage((UsageLine("gpt-5.6-sol", {INPUT: 200, OUTPUT: 30}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/responses/input_tokens",
            meter=Free(counted_models_of),
            forbidden=FORBIDDEN_IN_RESPONSES,
            long_fields=LONG_FIELDS_OF_RESPONSES,
            query=(),
            names=(*_NAMED_RESPONSE, *_NAMED_ITEMS),
            example=Example(
                path="/v1/responses/input_tokens",
                body=b'{"model":"gpt-5.6-sol","input":"Two colours, please."}',
                answer=b'{"object":"response.input_tokens","input_tokens":11}',
            ),
        ),
        Operation(
            "GET",
            "/v1/responses/{response_id}",
            meter=ReplayMeter(),
            query=("include", "include[]", "include_obfuscation", "starting_after", "stream"),
            names=_NAMED_IN_PATH,
            hands_out=_KEPT_RESPONSE,  # items that work in the background has made since
            example=Example(path="/v1/responses/resp_example1", answer=_RESPONSE),
        ),
        Operation(
            "POST",
            "/v1/responses/{response_id}/cancel",
            meter=Free(),
            query=(),
            may_lack_body=True,
            names=_NAMED_IN_PATH,
            hands_out=_KEPT_RESPONSE,
            example=Example(
                path="/v1/responses/resp_example1/cancel",
                answer=b'{"id":"resp_example1","object":"response","created_at":1795000000,'
                b'"status":"cancelled","background":true,"error":null,"model":"gpt-5.6-sol",'
                b'"output":[{"id":"rs_example1","type":"reasoning","summary":[]}],'
                b'"usage":null}',
            ),
        ),
        Operation(
            "POST",
            "/v1/completions",
            meter=CompletionsMeter(),
            query=(),
            example=Example(
                path="/v1/completions",
                body=b'{"model":"gpt-3.5-turbo-instruct","max_tokens":8,"prompt":"Two colours:"}',
                answer=b'{"id":"cmpl-example1","object":"text_completion","created":1795000000,'
                b'"model":"gpt-3.5-turbo-instruct","choices":[{"text":" red, blue","index":0,"logprobs":null,'
                b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}',
                usage=Usage((UsageLine("gpt-3.5-turbo-instruct", {INPUT: 3, OUTPUT: 4}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/embeddings",
            meter=EmbeddingsMeter(),
            query=(),
            example=Example(
                path="/v1/embeddings",
                body=b'{"model":"text-embedding-3-large","input":["a red and a blue ball","a ball"]}',
                answer=b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-0.2]},'
                b'{"object":"embedding","index":1,"embedding":[0.3,0.1]}],"model":"text-embedding-3-large",'
                b'"usage":{"prompt_tokens":8,"total_tokens":8}}',
                usage=Usage((UsageLine("text-embedding-3-large", {INPUT: 8}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/moderations",
            meter=Free(),
            query=(),
            example=Example(
                path="/v1/moderations",
                body=b'{"model":"omni-moderation-latest","input":"Two colours, please."}',
                answer=b'{"id":"modr-example1","model":"omni-moderation-latest","results":[{"flagged":false,'
                b'"categories":{"violence":false},"category_scores":{"violence":0.0001}}]}',
            ),
        ),
        Operation(
            "GET",
            "/v1/models",
            meter=Free(),
            query=(),
            example=Example(
                path="/v1/models",
                answer=b'{"object":"list","data":[{"id":"gpt-5.6-sol","object":"model","created":1795000000,'
                b'"owned_by":"system"}]}',
            ),
        ),
        Operation(
            "GET",
            "/v1/models/{model_id}",
            meter=Free(),
            query=(),
            example=Example(
                path="/v1/models/gpt-5.6-sol",
                answer=b'{"id":"gpt-5.6-sol","object":"model","created":1795000000,"owned_by":"system"}',
            ),
        ),
    ),
    dialect=OpenAIDialect(),
    dropped_request_headers=("openai-organization", "openai-project", "x-http-method-override"),
    dropped_answer_headers=("openai-organization", "openai-project", "x-ratelimit-*", "set-cookie"),
    options=(
        Option(
            DEFAULT_TIER_ENV,
            DEFAULT_TIER,
            "The tier in which the vendor's project runs requests that name none: `default`, `priority` or `flex`.",
            pattern="default|priority|flex",
            expected="default, priority or flex",
        ),
        Option(
            REGION_ENV,
            "",
            "The region whose host `OPENAI_UPSTREAM_URL` names (`us`, `eu`, ...): newer models cost more there.",
            pattern="[a-z]{2}",
            expected="two letters, as in eu",
        ),
    ),
)
