"""What Brave takes: its paths, the products they belong to, and the checks of a request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from simulators import brave_results as results
from simulators.brave_answers import VALIDATION, Family
from simulators.brave_results import Asked
from simulators.server import ReceivedRequest
from simulators.vendor import RefusedError

MODEL = "brave"

ROOT = "/res/v1"
PATH_CHAT = f"{ROOT}/chat/completions"
PATH_CONTEXT = f"{ROOT}/llm/context"
QUERY_CHARS_MAX, QUERY_WORDS_MAX = 400, 50
OFFSET_MAX = 9
"""Pages that may be skipped; the documented ceiling of web searches, here of all that have pages."""
CONTEXT_TOKENS_MAX = 32_768
IDS_MAX = 20
QUERIES_DEFAULT, QUERIES_MAX = 20, 50
"""Of a research, by `research_maximum_number_of_queries`."""
QUERY_TOKENS_DEFAULT, QUERY_TOKENS_MAX = 8_192, 16_384
"""Read for each query of a research, by `research_maximum_number_of_tokens_per_query`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of searches. `count_max`: results that a request may ask for (None: it has no say). `needs`: what a
    request must say (None: nothing). `requests`: what an answer is billed."""

    family: Family
    body: Callable[[Asked], dict[str, Any]]
    count_max: int | None = None
    needs: str | None = "q"
    requests: int = 1
    methods: tuple[str, ...] = ("GET",)


# The ceilings of images, videos, news, places and suggestions are those of third parties. That places may be asked
# for without a query, that places and rich results cost a request each, and that summaries cost none (their web
# search does), is not said by the vendor: choices.
ENDPOINTS: Mapping[str, Endpoint] = {
    f"{ROOT}/web/search": Endpoint(Family.SEARCH, results.web, 20, methods=("GET", "POST")),
    PATH_CONTEXT: Endpoint(Family.SEARCH, results.context, 50, methods=("GET", "POST")),
    f"{ROOT}/images/search": Endpoint(Family.SEARCH, results.images, 200),
    f"{ROOT}/videos/search": Endpoint(Family.SEARCH, results.videos, 50),
    f"{ROOT}/news/search": Endpoint(Family.SEARCH, results.news, 50),
    f"{ROOT}/local/place_search": Endpoint(Family.SEARCH, results.places, 100, needs=None),
    f"{ROOT}/local/pois": Endpoint(Family.SEARCH, results.pois, needs="ids"),
    f"{ROOT}/local/descriptions": Endpoint(Family.SEARCH, results.descriptions, needs="ids"),
    f"{ROOT}/web/rich": Endpoint(Family.SEARCH, results.rich, needs="callback_key"),
    f"{ROOT}/summarizer/search": Endpoint(Family.SEARCH, results.summary, needs="key", requests=0),
    f"{ROOT}/summarizer/summary": Endpoint(Family.SEARCH, results.summary, needs="key", requests=0),
    f"{ROOT}/summarizer/followups": Endpoint(Family.SEARCH, results.followups, needs="key", requests=0),
    f"{ROOT}/suggest/search": Endpoint(Family.SUGGEST, results.suggestions, 20),
    f"{ROOT}/spellcheck/search": Endpoint(Family.SPELLCHECK, results.spelling),
}


def invalid(place: str, complaint: str) -> RefusedError:
    """The refusal of a request that says something wrong. What stands in `meta` is not the account's."""
    meta = {"errors": [{"loc": [place], "msg": complaint}]}
    return RefusedError(422, f"{place}: {complaint}", error_type=VALIDATION, error_meta=meta)


def family_of(path: str) -> Family:
    """The product that a path belongs to."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint.family
    return Family.ANSWERS if path == PATH_CHAT else Family.SEARCH


def search_of(
    request: ReceivedRequest, fields: Mapping[str, Any], endpoint: Endpoint
) -> tuple[str, int, tuple[str, ...]]:
    """The query, how many results it may have, and the ids of places. Raises RefusedError(422) where the vendor
    would not answer."""
    if endpoint.needs is not None and not fields.get(endpoint.needs):
        raise invalid(endpoint.needs, "Field required")
    query = fields.get("q") or ""
    if not isinstance(query, str) or len(query) > QUERY_CHARS_MAX or len(query.split()) > QUERY_WORDS_MAX:
        raise invalid("q", f"At most {QUERY_CHARS_MAX} characters and {QUERY_WORDS_MAX} words")
    count = 1
    if endpoint.count_max is not None:
        count = _whole(fields, "count", endpoint.count_max, range(1, endpoint.count_max + 1))
    _whole(fields, "offset", 0, range(OFFSET_MAX + 1))
    if request.path == PATH_CONTEXT:
        _whole(fields, "maximum_number_of_tokens", 1, range(1, CONTEXT_TOKENS_MAX + 1))
    # One parameter each: `request.query` keeps the last of a name.
    given = parse_qsl(request.target.partition("?")[2]) if endpoint.needs == "ids" else []
    ids = tuple(value for name, value in given if name == "ids")
    if len(ids) > IDS_MAX:
        raise invalid("ids", f"At most {IDS_MAX}")
    return query, count, ids


def question_of(fields: Mapping[str, Any]) -> str:
    """What the only message asks. Raises RefusedError(422) where the vendor would not answer."""
    messages = fields["messages"]
    message = messages[0] if isinstance(messages, list) and len(messages) == 1 else None
    if not isinstance(message, dict) or message.get("role") != "user":
        raise invalid("messages", "Expected exactly one message of a user")
    question = message.get("content")
    if not isinstance(question, str) or not question:
        raise invalid("messages", "Expected a text")
    if fields["model"] != MODEL:
        raise invalid("model", f"Expected {MODEL}")
    for name in ("stream", "enable_research"):
        if not isinstance(fields.get(name, False), bool):
            raise invalid(name, "Expected true or false")
    if fields.get("enable_research") and fields.get("stream") is False:
        raise invalid("enable_research", "Only a stream may be a research")
    return question


def research_of(fields: Mapping[str, Any]) -> tuple[int, int]:
    """How many queries a research may run, and the tokens it may read for each. Raises RefusedError(422)."""
    queries = range(1, QUERIES_MAX + 1)
    tokens = range(1, QUERY_TOKENS_MAX + 1)
    return (
        _whole(fields, "research_maximum_number_of_queries", QUERIES_DEFAULT, queries),
        _whole(fields, "research_maximum_number_of_tokens_per_query", QUERY_TOKENS_DEFAULT, tokens),
    )


def _whole(fields: Mapping[str, Any], name: str, default: int, allowed: range) -> int:
    """A whole number of the request, as a query or a JSON object says it. Raises RefusedError(422)."""
    given = fields.get(name, default)
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or given not in allowed:
        raise invalid(name, f"Expected {allowed[0]} to {allowed[-1]}")
    return given
