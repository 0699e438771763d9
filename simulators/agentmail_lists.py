"""How AgentMail's lists are asked for and cut into pages, and its search."""

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

import orjson

from metering.clock import ms_of
from simulators import agentmail_errors as errors
from simulators.agentmail_state import HIDDEN_LABELS, Draft, Inbox, Message, Thread

LIMIT_DEFAULT, LIMIT_MAX = 50, 100
"""Items of a page. The vendor caps searches at 100; that lists have the same cap, and the default, are guesses."""


class Listed(Protocol):
    """What a list may hold: `position` is its time, and a number that tells those of one time apart."""

    @property
    def position(self) -> tuple[int, int]: ...


ListedT = TypeVar("ListedT", bound=Listed)
LabelledT = TypeVar("LabelledT", Message, Thread, Draft)


class Query:
    """The parameters of a list. The SDK for Python writes lists as JSON texts, others repeat the name."""

    def __init__(self, target: str) -> None:
        self._pairs = parse_qsl(target.partition("?")[2], keep_blank_values=True)

    def values(self, name: str) -> list[str]:
        found: list[str] = []
        for given, value in self._pairs:
            if given != name:
                continue
            if value.startswith("["):
                try:
                    found += map(str, orjson.loads(value))
                except orjson.JSONDecodeError as error:
                    raise errors.invalid("Invalid list", name) from error
            else:
                found.append(value)
        return found

    def value(self, name: str) -> str | None:
        return next((value for given, value in self._pairs if given == name), None)

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if value not in (None, "true", "false"):
            raise errors.invalid("Expected boolean", name)
        return value == "true"

    @property
    def limit(self) -> int:
        value = self.value("limit")
        if value is None:
            return LIMIT_DEFAULT
        if not (value.isascii() and value.isdigit()) or int(value) < 1:
            raise errors.invalid("Expected a positive integer", "limit")
        return min(int(value), LIMIT_MAX)

    def instant_ms(self, name: str) -> int | None:
        value = self.value(name)
        return None if value is None else parse_instant(value, name)

    @property
    def token(self) -> tuple[int, int] | None:
        """The position after which the page begins."""
        value = self.value("page_token")
        if value is None:
            return None
        try:
            at_ms, number = orjson.loads(base64.urlsafe_b64decode(value))
        except (binascii.Error, ValueError, TypeError) as error:
            raise errors.invalid("Invalid page token", "page_token") from error
        return int(at_ms), int(number)


def parse_instant(value: Any, *path: str) -> int:
    """An RFC 3339 time in milliseconds; one without an offset is taken for UTC. Raises RefusedError(400)."""
    try:
        at = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise errors.invalid("Invalid datetime", *path) from error
    return ms_of(at if at.tzinfo else at.replace(tzinfo=UTC))


def page(
    query: Query,
    items: Iterable[ListedT],
    plural: str,
    show: Callable[[ListedT], dict[str, Any]],
    *,
    is_ascending: bool | None = None,
) -> dict[str, Any]:
    """One page as the vendor shows it: newest first, unless `ascending` is asked for."""
    ascending = query.flag("ascending") if is_ascending is None else is_ascending
    before_ms, after_ms, token = query.instant_ms("before"), query.instant_ms("after"), query.token
    found = sorted(
        (
            item
            for item in items
            if (before_ms is None or item.position[0] < before_ms)
            and (after_ms is None or item.position[0] > after_ms)
            and (token is None or (item.position > token if ascending else item.position < token))
        ),
        key=lambda item: item.position,
        reverse=not ascending,
    )
    return cut(query, found, plural, show)


def cut(
    query: Query, found: Sequence[ListedT], plural: str, show: Callable[[ListedT], dict[str, Any]]
) -> dict[str, Any]:
    """The first `limit` of what was found, and where to go on."""
    shown = found[: query.limit]
    answer: dict[str, Any] = {"count": len(shown), "limit": query.limit}
    if len(found) > len(shown):
        answer["next_page_token"] = base64.urlsafe_b64encode(orjson.dumps(shown[-1].position)).decode()
    answer[plural] = [show(item) for item in shown]
    return answer


def labelled(query: Query, items: Iterable[LabelledT]) -> list[LabelledT]:
    """Those that bear every label asked for, and none of the hidden ones that were not."""
    asked = set(query.values("labels"))
    hidden = {label for label in HIDDEN_LABELS if not query.flag(f"include_{label}")} - asked
    return [item for item in items if asked <= set(item.labels) and not hidden & set(item.labels)]


def matching(query: Query, items: Iterable[LabelledT]) -> list[LabelledT]:
    """Those whose fields hold what is asked of them, by part and without regard to case."""
    found = list(items)
    for name, field in _FILTERS.items():
        for asked in query.values(name):
            found = [item for item in found if any(_holds(text, asked) for text in texts_of(item)[field])]
    return found


_FILTERS = {
    "from": "from",
    "senders": "from",
    "to": "recipients",
    "recipients": "recipients",
    "subject": "subject",
}


def texts_of(item: Message | Thread | Draft) -> dict[str, list[str]]:
    """What a search looks through, by the names that its highlights have."""
    if isinstance(item, Thread):
        contents = [message.content for message in item.messages]
        senders, recipients = item.senders, item.recipients
    else:
        content = item.content
        contents, recipients = [content], [*content.to, *content.cc, *content.bcc]
        senders = [item.sender] if isinstance(item, Message) else []
    return {
        "from": senders,
        "recipients": recipients,
        "subject": [content.subject for content in contents if content.subject],
        "text": [content.text for content in contents if content.text],
    }


def search(query: Query, items: Iterable[LabelledT], plural: str) -> dict[str, Any]:
    """Those that hold the words of `q` somewhere; newest first, for relevance is not simulated."""
    words = _words(query)
    found = {}
    for item in items:
        hits = {
            name: [_marked(text, words) for text in texts if any(_holds(text, word) for word in words)]
            for name, texts in texts_of(item).items()
        }
        if any(hits.values()) and not set(HIDDEN_LABELS) & set(item.labels):
            found[item.position] = (item, {name: texts for name, texts in hits.items() if texts})
    shown: Callable[[LabelledT], dict[str, Any]] = lambda item: {  # noqa: E731 - it needs `found`
        **item.item(),
        "highlights": found[item.position][1],
    }
    return page(query, [item for item, _ in found.values()], plural, shown, is_ascending=False)


def search_inboxes(query: Query, inboxes: Iterable[Inbox]) -> dict[str, Any]:
    """Each word of `q` begins a word of the address or the display name."""
    words = _words(query)

    def matches(inbox: Inbox) -> bool:
        text = f"{inbox.inbox_id} {inbox.display_name or ''}".lower()
        parts = text.replace("@", " ").replace(".", " ").replace("-", " ").split()
        return all(word in text.split() or any(part.startswith(word) for part in parts) for word in words)

    return page(query, filter(matches, inboxes), "inboxes", Inbox.as_json, is_ascending=False)


def _words(query: Query) -> list[str]:
    words = (query.value("q") or "").lower().split()
    if not words:
        raise errors.invalid("Required", "q")
    return words


def _holds(text: str, asked: str) -> bool:
    return asked.lower() in text.lower()


def _marked(text: str, words: Sequence[str]) -> str:
    for word in words:
        at = text.lower().find(word)
        if at >= 0:
            text = f"{text[:at]}**{text[at : at + len(word)]}**{text[at + len(word) :]}"
    return text
