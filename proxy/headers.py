"""Which headers pass. Hop-by-hop ones (RFC 9110 section 7.6.1), credentials and traces of the way never do."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import compress
from operator import itemgetter

from proxy.request import Request
from proxy.surface import HeaderKey, Headers, Surface

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS = frozenset(
    {
        b"authorization",
        b"cookie",
        b"proxy-authorization",
        b"x-api-key",
        b"x-goog-api-key",
        b"x-bb-api-key",
        b"x-subscription-token",
    }
)
OURS_UPSTREAM = frozenset({b"accept-encoding", b"content-length", b"expect", b"host"})
"""What the upstream request has its own of."""
WAY = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-http-method-override", b"true-client-ip"})
WAY_PREFIXES = (b"x-forwarded-", b"cf-", b"fly-", b"x-automna-")
REPEATS = frozenset({b"idempotency-key", b"x-idempotency-key"})
"""Under such a key a vendor repeats an earlier answer, to whoever of the account names it again: another user, too."""
ANSWER_DROPPED = frozenset({b"set-cookie", b"date", b"alt-svc", b"proxy-authenticate", b"ratelimit"})
ANSWER_DROPPED_PREFIXES = (b"x-automna-", b"ratelimit-")
"""A vendor's `RateLimit` speaks of our account; the answer has the caller's own (proxy/limit_headers.py)."""


SETS_KEPT = 1_000
"""Sets of names whose verdict a filter remembers: each kind of client has one or two, and so has a vendor."""
SET_BYTES_MAX = 2_048
"""Of the names in one of them: a hostile client must not fill memory."""
CODINGS_KEPT = 100
"""Lists of codings (Accept-Encoding) whose verdict is remembered; each as long as a head at most."""
_name, _value = itemgetter(0), itemgetter(1)


_Verdict = tuple[tuple[bool, ...], int, int]
"""Which of some headers pass, how many of them are `Connection`, and where the first of these stands."""
_NAMING_NONE = frozenset({b"keep-alive", b"close"})
"""As `Connection` mostly is written: it names no header."""


class HeaderFilter:
    """A set of names and prefixes that do not pass, and a secret that passes under no name."""

    __slots__ = ("_names", "_prefixes", "_remembered")

    def __init__(self, names: Iterable[bytes], prefixes: Iterable[bytes]) -> None:
        self._names = frozenset(names)
        self._prefixes = tuple(prefixes)
        self._remembered: dict[tuple[bytes, ...], _Verdict] = {}
        """Which headers with these names, in this order, pass: heads of one origin differ in their values alone."""

    def passed(self, headers: Headers, *, secret: bytes) -> Headers:
        """What remains, also without the headers that `Connection` names and, whatever their name, those that
        repeat `secret`: the gateway token on the way up, the vendor's key on the way down."""
        names = tuple(map(_name, headers))
        verdicts, connections, at = self._remembered.get(names) or self._verdict(names)
        passed = list(compress(headers, verdicts))
        if secret and b"\n".join(map(_value, passed)).find(secret) >= 0:  # `in` takes twice as long for bytes
            passed = [pair for pair in passed if secret not in pair[1]]
        names_some = connections and (connections > 1 or headers[at][1] not in _NAMING_NONE)
        if names_some and (named := _named_by_connection(headers)):
            passed = [pair for pair in passed if pair[0] not in named]
        return passed

    def _verdict(self, names: tuple[bytes, ...]) -> _Verdict:
        connections = names.count(b"connection")
        verdict = (
            tuple([not (name in self._names or name.startswith(self._prefixes)) for name in names]),
            connections,
            names.index(b"connection") if connections else -1,
        )
        if sum(map(len, names)) <= SET_BYTES_MAX:
            if len(self._remembered) >= SETS_KEPT:
                self._remembered.clear()
            self._remembered[names] = verdict
        return verdict


def request_filter(surface: Surface) -> HeaderFilter:
    """For headers on their way up."""
    names, prefixes = _split(surface.dropped_request_headers)
    names |= {name.encode() for name in surface.upstream.secret_headers}
    places = [place for place in surface.token_places if isinstance(place, HeaderKey)]
    tokens = {place.name.lower().encode() for place in places}
    return HeaderFilter(
        HOP_BY_HOP | CREDENTIALS | OURS_UPSTREAM | WAY | REPEATS | names | tokens, (*WAY_PREFIXES, *prefixes)
    )


def answer_filter(surface: Surface) -> HeaderFilter:
    """For headers on their way down. `content-length` passes: the bytes are the vendor's."""
    names, prefixes = _split(surface.dropped_answer_headers)
    credential = surface.upstream.credential.name.lower().encode()
    return HeaderFilter(
        HOP_BY_HOP | CREDENTIALS | ANSWER_DROPPED | names | {credential},
        (*ANSWER_DROPPED_PREFIXES, *prefixes),
    )


def accepts_gzip(request: Request) -> bool:
    """Whether the client takes gzip, the one coding that the meter reads besides identity."""
    if b"accept-encoding" not in request.first:
        return False
    return _has_gzip(b",".join([value for name, value in request.headers if name == b"accept-encoding"]))


@lru_cache(maxsize=CODINGS_KEPT)
def _has_gzip(codings: bytes) -> bool:
    for item in codings.lower().split(b","):
        coding, _, weight = item.partition(b";")
        if coding.strip() == b"gzip":
            return weight.replace(b" ", b"").rstrip(b"0").rstrip(b".") not in {b"q=", b"q=0"}
    return False


def has_header(headers: Headers, name: bytes) -> bool:
    """Whether one of that name is among them."""
    return name in map(_name, headers)


def is_said_to_be_json(headers: Headers) -> bool:
    """Whether a body is said to be what we read it as, JSON in UTF-8, or nothing is said of it.

    A body that is JSON to us may be a form (`&model=...` in a text), binary, or a text in UTF-7 to a vendor that
    obeys its type: Google takes a form's fields for parameters of the query.
    """
    for name, value in headers:
        if name == b"content-type":
            if value == b"application/json":
                continue
            media, *parameters = (piece.strip() for piece in value.lower().split(b";"))
            if media != b"application/json":
                return False
            charsets = [piece for piece in parameters if piece.startswith(b"charset")]
            if any(piece.replace(b'"', b"") != b"charset=utf-8" for piece in charsets):
                return False
    return True


def asks_for_websocket(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request offers to go on as a websocket (RFC 6455 section 4.1)."""
    return any(name == b"upgrade" and b"websocket" in value.lower() for name, value in headers)


def _split(names: Iterable[str]) -> tuple[frozenset[bytes], tuple[bytes, ...]]:
    encoded = [name.lower().encode() for name in names]
    exact = frozenset(name for name in encoded if not name.endswith(b"*"))
    return exact, tuple(name[:-1] for name in encoded if name.endswith(b"*"))


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    for name, value in headers:
        if name == b"connection" and value.lower() not in _NAMING_NONE:
            return frozenset(token.strip() for token in value.lower().split(b","))
    return _NOTHING


_NOTHING: frozenset[bytes] = frozenset()
