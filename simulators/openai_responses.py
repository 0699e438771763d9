"""OpenAI's Responses on the wire, and those that the vendor keeps: to be fetched again, continued, or still at work.

Shapes as in the vendor's own SDK (openai 3, its types) and in answers recorded in 2026.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from simulators.openai_shapes import CREATED_S, Reply, ToolCall, obfuscation
from simulators.script import Gate
from simulators.text import text_pieces

QUEUED, IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED, CANCELLED = (
    "queued",
    "in_progress",
    "completed",
    "incomplete",
    "failed",
    "cancelled",
)
UNFINISHED = (QUEUED, IN_PROGRESS)
TERMINAL_EVENTS = {
    COMPLETED: "response.completed",
    INCOMPLETE: "response.incomplete",
    FAILED: "response.failed",
    CANCELLED: "response.failed",
}
"""The last event of a stream by the status that the response ends in; the vendor names none for a cancelled one."""


@dataclass(frozen=True, slots=True)
class Response:
    """One response in the status that it ends in. `echo`: the request's fields that the object repeats;
    `tier_asked`: what is told as the tier until the response ends."""

    reply: Reply
    status: str = COMPLETED
    error: Mapping[str, Any] | None = None
    echo: Mapping[str, Any] = field(default_factory=dict)
    tier_asked: str = "auto"
    keepalives: int = 0
    obfuscates: bool = True

    def object(self, status: str | None = None) -> dict[str, Any]:
        """As JSON, at its end or, with an unfinished `status`, on the way there."""
        reply, is_ended = self.reply, status not in UNFINISHED
        usage = reply.usage if is_ended else None
        body: dict[str, Any] = {
            "id": reply.id,
            "object": "response",
            "created_at": CREATED_S,
            "status": self.status if is_ended else status,
            "background": False,
            "error": self.error if is_ended else None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if is_ended and self.status == INCOMPLETE
            else None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": reply.model,
            "output": self._output() if is_ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None if usage is None else usage.in_response(),
            "user": None,
            **self.echo,
            "service_tier": reply.service_tier if is_ended else self.tier_asked,
        }
        if usage is not None and usage.web_searches:
            body["tool_usage"] = _tool_usage(usage.web_searches)
        return body

    def json(self, status: str | None = None) -> bytes:
        return orjson.dumps(self.object(status))

    def events(self) -> list[bytes]:
        """The whole stream, numbered from 0."""
        return [
            event(name, {**fields, "sequence_number": number})
            for number, (name, fields) in enumerate(self._events())
        ]

    @property
    def events_before_work(self) -> int:
        """How many events come before anything is done: created, perhaps queued, in progress."""
        return 3 if self.echo.get("background") else 2

    def _events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        is_background = self.echo.get("background")
        yield "response.created", {"response": self.object(QUEUED if is_background else IN_PROGRESS)}
        if is_background:
            yield "response.queued", {"response": self.object(QUEUED)}
        yield "response.in_progress", {"response": self.object(IN_PROGRESS)}
        for _ in range(self.keepalives):
            yield "keepalive", {}
        for index, item in enumerate(self._output()):
            place = {"output_index": index, "item_id": item["id"]}
            yield "response.output_item.added", {"output_index": index, "item": _begun(item)}
            yield from self._inside(item, place)
            yield "response.output_item.done", {"output_index": index, "item": item}
        yield TERMINAL_EVENTS[self.status], {"response": self.object()}

    def _inside(
        self, item: Mapping[str, Any], place: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What comes between the beginning and the end of an item."""
        if item["type"] == "message":
            (part,) = item["content"]
            place = {**place, "content_index": 0}
            yield "response.content_part.added", {**place, "part": {**part, "text": ""}}
            for number, piece in enumerate(text_pieces(part["text"], self.reply.deltas)):
                padding = {"obfuscation": obfuscation(number)} if self.obfuscates else {}
                yield "response.output_text.delta", {**place, "delta": piece, "logprobs": [], **padding}
            yield "response.output_text.done", {**place, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**place, "part": part}
        elif item["type"] == "reasoning":
            (part,) = item["summary"]
            place = {**place, "summary_index": 0}
            yield "response.reasoning_summary_part.added", {**place, "part": {**part, "text": ""}}
            yield "response.reasoning_summary_text.delta", {**place, "delta": part["text"]}
            yield "response.reasoning_summary_text.done", {**place, "text": part["text"]}
            yield "response.reasoning_summary_part.done", {**place, "part": part}
        elif item["type"] == "function_call":
            yield "response.function_call_arguments.delta", {**place, "delta": item["arguments"]}
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", {**place, **said}

    def _output(self) -> list[dict[str, Any]]:
        """The items: reasoning, searches, the message, calls of tools. A failed or cancelled one has none."""
        if self.status in (FAILED, CANCELLED):
            return []
        reply = self.reply
        items: list[dict[str, Any]] = []
        if reply.thinking is not None:
            summary = [{"type": "summary_text", "text": reply.thinking}]
            items.append({"id": f"rs_{reply.id}", "type": "reasoning", "summary": summary})
        for index in range(reply.usage.web_searches if reply.usage is not None else 0):
            action = {"type": "search", "query": "birds"}
            search = {"id": f"ws_{reply.id}_{index}", "type": "web_search_call", "action": action}
            items.append({**search, "status": "completed"})
        if reply.text or not reply.tool_calls:
            items.append(message_item(reply, "incomplete" if self.status == INCOMPLETE else "completed"))
        items += [_call_item(reply, index, call) for index, call in enumerate(reply.tool_calls)]
        return items


def message_item(reply: Reply, status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}],
    }


def _call_item(reply: Reply, index: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{reply.id}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{reply.id}_{index}",
        "name": call.name,
        "arguments": call.arguments,
    }


def _begun(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item before there is anything in it."""
    empty = {"status": "in_progress", "content": [], "summary": [], "arguments": ""}
    return {name: empty.get(name, value) for name, value in item.items()}


def _tool_usage(web_searches: int) -> dict[str, Any]:
    images = {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
    }
    return {"image_gen": images, "web_search": {"num_requests": web_searches}}


def event(name: str, fields: Mapping[str, Any]) -> bytes:
    """One server-sent event; its name stands in the data too."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))


def compaction_json(reply: Reply) -> bytes:
    """A conversation made shorter."""
    item = {"id": f"cmp_{reply.id}", "type": "compaction", "encrypted_content": "c2ltdWxhdGVk"}
    return orjson.dumps(
        {
            "id": reply.id,
            "object": "response.compaction",
            "created_at": CREATED_S,
            "output": [message_item(reply, "completed"), item],
            "usage": None if reply.usage is None else reply.usage.in_response(),
        }
    )


class Kept:
    """A response that the vendor keeps. One in the background is at work until told otherwise, or until it was
    asked for `polls` times."""

    def __init__(self, response: Response, *, is_background: bool, polls: int | None) -> None:
        self.response = response
        self.is_background = is_background
        self.ended = Gate()
        """Opens when the response ends."""
        self._polls_left = polls
        self._status = QUEUED if is_background else response.status
        if not is_background or polls == 0:
            self.end()

    @property
    def status(self) -> str:
        return self._status

    @property
    def is_unfinished(self) -> bool:
        return self._status in UNFINISHED

    def poll(self) -> None:
        """Somebody asks how far it is."""
        if not self.is_unfinished:
            return
        if self._polls_left == 0:
            self.end()
            return
        self._status = IN_PROGRESS
        if self._polls_left is not None:
            self._polls_left -= 1

    def end(self, status: str | None = None, error: Mapping[str, Any] | None = None) -> None:
        """It ends as scripted, or in another status, which then reports no usage. Once: later ones change nothing."""
        if self.ended.is_open:
            return
        if status is not None and status != self.response.status:
            reply = replace(self.response.reply, usage=None)
            self.response = replace(self.response, reply=reply, status=status, error=error)
        self._status = self.response.status
        self.ended.open()

    def json(self) -> bytes:
        return self.response.json(self._status if self.is_unfinished else None)

    def events_from(self, number: int) -> list[bytes]:
        """The events so far from this one on: all of them, or those before the work."""
        events = self.response.events()
        return events[number : self.response.events_before_work] if self.is_unfinished else events[number:]

    def events_to_come(self, number: int) -> bytes:
        """What `events_from` did not have yet, once it has ended."""
        return b"".join(self.response.events()[max(number, self.response.events_before_work) :])
