"""Anthropic: the Messages API, token counts and the list of models."""

from metering.usage import INPUT, OUTPUT, Usage, UsageLine
from proxy.meters import Free
from proxy.surface import BEARER, Example, ForbiddenField, HeaderKey, Operation, Option, Surface, Upstream
from routes.anthropic_errors import AnthropicDialect
from routes.anthropic_meter import (
    DEFAULT_GEO,
    DEFAULT_GEO_ENV,
    PDF_TOKENS_ENV,
    PROVIDER,
    MessagesMeter,
    models_of,
)
from routes.pdfs import pdf_option

_FILES = "the vendor's files are shared by all users of this gateway; send the content inline."
_HELD_STATE = "a conversation held by the vendor is not bound to a user; send all messages."
_CONTAINERS = "containers are shared by all users of this gateway."

FORBIDDEN = (
    ForbiddenField("thread", _HELD_STATE),
    ForbiddenField("diagnostics.previous_message_id", "it names a message that another user may own."),
    ForbiddenField("container", _CONTAINERS),
    ForbiddenField("messages.**.type", _CONTAINERS, value="container_upload"),
    ForbiddenField("messages.**.source.file_id", _FILES),
    ForbiddenField("messages.**.source.type", _FILES, value="file"),
    ForbiddenField("messages.**.type", _FILES, value="code_execution_output"),
    ForbiddenField("messages.**.type", _FILES, value="bash_code_execution_output"),
    ForbiddenField("mcp_servers", "the vendor would call servers of anyone's choosing with our account."),
    ForbiddenField("billing_policy", "who is billed is decided by the gateway."),
    ForbiddenField("fallback_credit_token", "such a credit belongs to the account, not to one user."),
)
"""Fields that reach what other users may own (Python SDK 2.11.0, `message_create_params.py`). A `file_id`
stands in two kinds of sources and three kinds of blocks; as the name of a parameter of somebody's own tool
it is harmless, so it is not forbidden at any depth."""

LONG_FIELDS = ("messages", "system", "tools")

_MESSAGE_BODY = (
    b'{"model":"claude-haiku-4-5","max_tokens":64,"stream":true,'
    b'"messages":[{"role":"user","content":"Two colours, please."}]}'
)
_MESSAGE_STREAM = b"""event: message_start
data: {"type":"message_start","message":{"id":"msg_example1","type":"message","role":"assistant",\
"model":"claude-haiku-4-5-20251001","content":[],"stop_reason":null,"stop_sequence":null,\
"usage":{"input_tokens":12,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Teal and ochre."}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},\
"usage":{"output_tokens":9}}

event: message_stop
data: {"type":"message_stop"}

"""

SURFACE = Surface(
    name="anthropic",
    provider=PROVIDER,
    mounts=("/api/llm",),
    upstream=Upstream(
        "https://api.anthropic.com",
        url_env="ANTHROPIC_UPSTREAM_URL",
        key_env="ANTHROPIC_API_KEY",
        credential=HeaderKey("x-api-key"),
        # What clients send decides; this only serves those (curl) that send none, which the vendor refuses.
        fixed_headers={"anthropic-version": "2023-06-01"},
    ),
    token_places=(BEARER, HeaderKey("x-api-key")),
    operations=(
        Operation(
            "POST",
            "/v1/messages",
            meter=MessagesMeter(),
            forbidden=FORBIDDEN,
            long_fields=LONG_FIELDS,
            example=Example(
                path="/v1/messages",
                body=_MESSAGE_BODY,
                answer=_MESSAGE_STREAM,
                answer_content_type="text/event-stream; charset=utf-8",
                usage=Usage((UsageLine("claude-haiku-4-5-20251001", {INPUT: 12, OUTPUT: 9}),)),
            ),
        ),
        Operation(
            "POST",
            "/v1/messages/count_tokens",
            meter=Free(models_of),
            forbidden=FORBIDDEN,
            long_fields=LONG_FIELDS,
            example=Example(
                path="/v1/messages/count_tokens",
                body=b'{"model":"claude-haiku-4-5","messages":[{"role":"user","content":"Two colours."}]}',
                answer=b'{"input_tokens":10}',
            ),
        ),
        Operation(
            "GET",
            "/v1/models",
            meter=Free(),
            example=Example(
                path="/v1/models",
                answer=b'{"data":[{"type":"model","id":"claude-haiku-4-5-20251001",'
                b'"display_name":"Claude Haiku 4.5"}],"has_more":false}',
            ),
        ),
        Operation(
            "GET",
            "/v1/models/{model_id}",
            meter=Free(),
            example=Example(
                path="/v1/models/claude-haiku-4-5-20251001",
                answer=b'{"type":"model","id":"claude-haiku-4-5-20251001","display_name":"Claude Haiku 4.5"}',
            ),
        ),
    ),
    dialect=AnthropicDialect(),
    dropped_request_headers=(
        "anthropic-workspace-id",
        "anthropic-organization-id",
        "anthropic-user-profile-id",
        "x-http-method-override",
    ),
    dropped_answer_headers=(
        "anthropic-organization-id",
        "anthropic-workspace-id",
        "anthropic-ratelimit-*",
        "anthropic-priority-*",
        "anthropic-fast-*",
        "set-cookie",
    ),
    options=(
        Option(
            DEFAULT_GEO_ENV,
            DEFAULT_GEO,
            "Where the vendor's workspace runs requests that name no `inference_geo`: `global` or `us`.",
            pattern="global|us",
            expected="global or us",
        ),
        pdf_option(PDF_TOKENS_ENV),
    ),
)
