"""The bodies of Brave's searches: results, contexts, places, summaries, suggestions.

Those of `/web/search`, `/llm/context`, `/suggest/search` and the errors are as documented in 2026, cut to what
clients read; the others have their documented `type` and the fewest fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RICH_CALLBACK_KEY = "86d06abffc884e9ea281a40f62e0a5a6"
AGES = ["Friday, November 20, 2026", "2026-11-20", "1 hour ago"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search asks for, and with what it is answered. `count`: so many results; `text`: what each says;
    `ids`: of the places; `fields`: all that the request said."""

    query: str
    count: int
    text: str
    ids: tuple[str, ...]
    fields: Mapping[str, Any]

    def is_on(self, name: str) -> bool:
        """A flag of the request, as a query or a JSON object says it."""
        return str(self.fields.get(name, "")).lower() in ("1", "true")

    @property
    def urls(self) -> list[str]:
        return [f"https://site{number}.example/page" for number in range(1, self.count + 1)]


def web(asked: Asked) -> dict[str, Any]:
    """`/web/search`, with the keys of what may be fetched next."""
    results = [
        {
            "title": f"Result {number}",
            "url": url,
            "description": asked.text,
            "age": "1 hour ago",
            "type": "search_result",
        }
        for number, url in enumerate(asked.urls, 1)
    ]
    body: dict[str, Any] = {
        "type": "search",
        "query": {"original": asked.query, "more_results_available": True},
        "mixed": {"type": "mixed", "main": [{"type": "web", "index": n} for n in range(asked.count)]},
        "web": {"type": "search", "results": results},
    }
    if asked.is_on("summary"):
        body["summarizer"] = {"type": "summarizer", "key": f"summary of {asked.query}"}
    if asked.is_on("enable_rich_callback"):
        hint = {"vertical": "weather", "callback_key": RICH_CALLBACK_KEY}
        body["rich"] = {"type": "rich", "hint": hint}
    return body


def context(asked: Asked) -> dict[str, Any]:
    """`/llm/context`."""
    generic = [{"url": url, "title": "A page", "snippets": [asked.text]} for url in asked.urls]
    sources = {url: {"title": "A page", "hostname": url.split("/")[2], "age": AGES} for url in asked.urls}
    return {"grounding": {"generic": generic, "map": []}, "sources": sources}


def images(asked: Asked) -> dict[str, Any]:
    return _results("images", asked)


def videos(asked: Asked) -> dict[str, Any]:
    return _results("videos", asked)


def news(asked: Asked) -> dict[str, Any]:
    return _results("news", asked)


def places(asked: Asked) -> dict[str, Any]:
    """`/local/place_search`. The ids are good for the two below."""
    results = [{"id": f"place{n}", "title": f"Place {n}"} for n in range(1, asked.count + 1)]
    return {"type": "locations", "query": {"original": asked.query}, "results": results}


def pois(asked: Asked) -> dict[str, Any]:
    return {"type": "local_pois", "results": [{"id": place, "title": asked.text} for place in asked.ids]}


def descriptions(asked: Asked) -> dict[str, Any]:
    results = [{"id": place, "description": asked.text} for place in asked.ids]
    return {"type": "local_descriptions", "results": results}


def rich(asked: Asked) -> dict[str, Any]:
    return {"type": "rich", "results": [{"subtype": "weather", "text": asked.text}]}


def summary(asked: Asked) -> dict[str, Any]:
    return {"type": "summarizer", "status": "complete", "summary": [{"type": "token", "data": asked.text}]}


def followups(asked: Asked) -> dict[str, Any]:
    return {"type": "summarizer", "status": "complete", "followups": [asked.text]}


def suggestions(asked: Asked) -> dict[str, Any]:
    results = [{"query": f"{asked.query}{'e' * n}"} for n in range(1, asked.count + 1)]
    return {"type": "suggest", "query": {"original": asked.query}, "results": results}


def spelling(asked: Asked) -> dict[str, Any]:
    return {
        "type": "spellcheck",
        "query": {"original": asked.query},
        "results": [{"query": asked.query.lower()}],
    }


def _results(kind: str, asked: Asked) -> dict[str, Any]:
    results = [{"title": asked.text, "url": url} for url in asked.urls]
    return {"type": kind, "query": {"original": asked.query}, "results": results}
