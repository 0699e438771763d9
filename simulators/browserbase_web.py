"""Browserbase without a browser: one page fetched, one search."""

from collections.abc import Mapping
from typing import Any

from simulators import browserbase_errors as errors
from simulators.browserbase_behaviour import ReportedUsage
from simulators.browserbase_project import Project
from simulators.browserbase_turn import Call, Given, Handler, given

RESULTS_DEFAULT, RESULTS_MAX = 10, 25
MODES: Mapping[str, tuple[str, ...]] = {
    "exa": ("fast", "deep-lite", "deep"),
    "parallel": ("fast", "advanced"),
}
"""The modes of each provider of searches."""
FORMATS = ("raw", "json", "markdown")


class Web:
    def __init__(self, project: Project) -> None:
        self._project = project
        self.routes: Mapping[str, Handler] = {"POST /fetch": self._fetch, "POST /search": self._search}

    def _fetch(self, call: Call) -> Given:
        fields = call.fields()
        url, form = fields.get("url"), fields.get("format", "raw")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise errors.invalid('body/url must match format "uri"')
        if form not in FORMATS or (form == "json" and not isinstance(fields.get("schema"), dict)):
            raise errors.invalid("body/format must be raw, markdown, or json with a schema")
        if fields.get("contextId") is not None:
            self._project.context(str(fields["contextId"]))
        contents: dict[str, Any] = {
            "raw": f"<html><title>{url}</title></html>",
            "markdown": f"# {url}",
            "json": {"title": url},
        }
        call.usage, call.object_id = ReportedUsage(fetches=1), self._project.new_id()
        return given(
            {
                "id": call.object_id,
                "statusCode": 200,
                "headers": {"content-type": "text/html; charset=utf-8"},
                "content": contents[form],
                "contentType": "text/html; charset=utf-8",
                "encoding": "utf-8",
            }
        )

    def _search(self, call: Call) -> Given:
        fields = call.fields()
        query, count, provider = (
            fields.get("query"),
            fields.get("numResults", RESULTS_DEFAULT),
            fields.get("provider"),
        )
        if not isinstance(query, str) or not query:
            raise errors.invalid("body/query must be string")
        if not isinstance(count, int) or not 1 <= count <= RESULTS_MAX:
            raise errors.invalid(f"body/numResults must be >= 1 and <= {RESULTS_MAX}")
        if provider is not None and provider not in MODES:
            raise errors.invalid(f"body/provider must be one of {', '.join(MODES)}")
        if "mode" in fields and fields["mode"] not in MODES.get(provider or "", ()):
            raise errors.invalid("body/mode does not fit body/provider")
        call.usage, call.object_id = ReportedUsage(searches=1), self._project.new_id()
        results = [
            {
                "id": f"https://simulated.example/{number}",
                "title": f"{query} {number}",
                "url": f"https://simulated.example/{number}",
            }
            for number in range(count)
        ]
        return given({"requestId": call.object_id, "query": query, "results": results})
