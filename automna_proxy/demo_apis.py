"""The vendors' APIs that the demo asks, as plain HTTP: path, key, body, and where the text stands in an answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulators.vendor import Answered

Json = Mapping[str, Any]
BodyOf = Callable[[str, str, int], dict[str, Any]]
"""By model, question, and the ceiling of what may be said."""
RESULTS_SHOWN = 2
"""Of a search."""


@dataclass(frozen=True, slots=True)
class Api:
    """One operation of a vendor. `path` may hold `{model}`, `{id}` (the last object seen) and `{question}`.

    `surface` is its name in the ledger, `speaker` the one on the page; `key` and `key_prefix` the header that carries
    the token. `body_of` None is a GET. `text_of` is asked of an event of a stream and of a whole answer, `is_last` of
    an event, and so is `tells_usage`. `error_names`: an error's kind and message, where it is not a text.
    `product`: what the price list calls it, where no answer names a model. `vendor`: whose it is, where the surface is
    named otherwise. `told_of`: the text that must be told, where only the vendor knows what happened.
    """

    surface: str
    speaker: str
    path: str
    key: str
    body_of: BodyOf | None
    text_of: Callable[[Json], str]
    key_prefix: str = ""
    is_last: Callable[[Json], bool] = lambda _: False
    tells_usage: Callable[[Json], bool] = lambda _: False
    error_names: tuple[str, str] = ("type", "message")
    product: str = ""
    vendor: str = ""
    told_of: Callable[[Answered], str] | None = None

    @property
    def provider(self) -> str:
        """The vendor's name in the price list."""
        return self.vendor or self.surface

    def headers(self, gateway_token: str) -> dict[str, str]:
        return {self.key: self.key_prefix + gateway_token, "content-type": "application/json"}


def _messages_body(model: str, question: str, tokens_max: int) -> dict[str, Any]:
    return {"model": model, "max_tokens": tokens_max, "messages": _said(question)}


def _messages_text(message: Json) -> str:
    if "content" in message:
        return "".join(block.get("text", "") for block in message["content"])
    return str(message.get("delta", {}).get("text", ""))


def _chat_body(model: str, question: str, tokens_max: int) -> dict[str, Any]:
    return {"model": model, "max_completion_tokens": tokens_max, "messages": _said(question)}


def _chat_text(chunk: Json) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _tells_usage(chunk: Json) -> bool:
    return bool(chunk.get("usage")) or not chunk["choices"]


def _response_body(model: str, question: str, tokens_max: int) -> dict[str, Any]:
    return {"model": model, "max_output_tokens": tokens_max, "input": question}


def _response_text(response: Json) -> str:
    return "".join(part.get("text", "") for item in response["output"] for part in item.get("content", ()))


def _gemini_body(model: str, question: str, tokens_max: int) -> dict[str, Any]:  # noqa: ARG001 - the path names it
    contents = [{"role": "user", "parts": [{"text": question}]}]
    return {"contents": contents, "generationConfig": {"maxOutputTokens": tokens_max}}


def _gemini_text(chunk: Json) -> str:
    parts = (part for candidate in chunk["candidates"] for part in candidate["content"]["parts"])
    return "".join(part.get("text", "") for part in parts if not part.get("thought"))


def _results(answer: Json) -> str:
    shown = answer["web"]["results"][:RESULTS_SHOWN]
    return "\n".join(f"{found['title']} ({found['url']}): {found['description']}" for found in shown)


def _email_body(model: str, question: str, tokens_max: int) -> dict[str, Any]:  # noqa: ARG001 - mail has neither
    return {"subject": question}


def _sent_as(message_id: object) -> str:
    return f"sent as {message_id}"


def _said(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


MESSAGES = Api(
    "anthropic",
    "claude",
    "/api/llm/v1/messages",
    "x-api-key",
    _messages_body,
    _messages_text,
    is_last=lambda event: bool(event["type"] == "message_stop"),
)
CHAT = Api(
    "openai",
    "gpt",
    "/api/openai/v1/chat/completions",
    "authorization",
    _chat_body,
    _chat_text,
    key_prefix="Bearer ",
    tells_usage=_tells_usage,
)
RESPONSES = Api(
    "openai",
    "gpt",
    "/api/openai/v1/responses",
    "authorization",
    _response_body,
    _response_text,
    key_prefix="Bearer ",
)
RESPONSE = Api(
    "openai",
    "gpt",
    "/api/openai/v1/responses/{id}",
    "authorization",
    None,
    _response_text,
    key_prefix="Bearer ",
)
GEMINI = Api(
    "gemini",
    "gemini",
    "/api/gemini/v1beta/models/{model}:streamGenerateContent?alt=sse",
    "x-goog-api-key",
    _gemini_body,
    _gemini_text,
    is_last=lambda chunk: any("finishReason" in candidate for candidate in chunk["candidates"]),
    error_names=("status", "message"),
)
SEARCH = Api(
    "brave",
    "brave",
    "/api/brave/res/v1/web/search?q={question}",
    "x-subscription-token",
    None,
    _results,
    error_names=("code", "detail"),
    product="search",
)
EMAIL = Api(
    "email",
    "mail",
    "/api/user/email/send",
    "authorization",
    _email_body,
    lambda answer: _sent_as(answer["messageId"]),
    key_prefix="Bearer ",
    product="email",
    vendor="agentmail",
    told_of=lambda answered: _sent_as(answered.message_id),
)
