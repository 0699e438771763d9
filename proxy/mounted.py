"""A surface made ready to serve: its operations indexed, its headers compiled, its vendor's key at hand."""

import re
import urllib.parse
from collections.abc import Iterable, Mapping

from metering.errors import Reason, Refused
from proxy.auth import TokenPlaces
from proxy.bounds import Bounds
from proxy.headers import answer_filter, request_filter
from proxy.surface import EventSocket, Headers, Operation, Question, Surface, Upstream
from proxy.upstream import Origin, Timeouts

_UNSAFE = re.compile(rb"%2f|%5c|%00|//|\\|(?:^|/)(?:\.|%2e){1,2}(?:/|;|%3b|$)", re.IGNORECASE)
"""Encoded slashes, empty and dot segments: no declared path has them, and vendors may resolve them, some of them (Java's servers)
also with parameters behind the dots (`..;x`)."""


_PIECE = re.compile(r"\{(?P<name>\w+)(?::(?P<choices>[^{}]*))?\}")
"""A named piece of an operation's path."""
_ANYTHING, _WIDE = "*", "__wide"
"""A piece that may be anything, in a path and at the end of its group's name."""
_ESCAPED = re.compile(rb"\\(?:(/)|u00([0-7][0-9A-Fa-f]))")
"""A sign in a JSON text that may as well stand there as it is: encoders hide some from browsers (`=`, `/`)."""
_WS = re.compile("^ws(?=s?:)")
_NAMED = re.compile(rb"\{(\w+)\}")
_DOTS = frozenset({b".", b".."})
_NO_PIECES = frozenset({"", ".", ".."})
_NO_PIECES_NAMED: Mapping[str, str] = {}


class Mounted:
    """One surface of this process. Raises ValueError when an upstream override is malformed."""

    def __init__(self, surface: Surface, variables: Mapping[str, str], bounds: Bounds) -> None:
        upstream = surface.upstream
        self.surface = surface
        self.request_filter = request_filter(surface)
        self.token_places = TokenPlaces(surface.token_places)
        self._places_of_sockets = {
            one.name: TokenPlaces((*surface.token_places, *one.socket.more_token_places))
            for one in surface.operations
            if one.socket is not None
        }
        self._keys = {
            name: variables.get(name, "")
            for name in (upstream.key_env, *(one.key_env for one in surface.operations if one.key_env))
        }
        self._key_headers = {
            name: (upstream.credential.name.encode(), f"{upstream.credential.scheme}{key}".encode())
            for name, key in self._keys.items()
            if key
        }
        """What an operation of the vendor's is asked with, by the variable of the key; of most, which name none, by ""."""
        if upstream.key_env in self._key_headers:
            self._key_headers[""] = self._key_headers[upstream.key_env]
        self._more_keys = {
            name.encode(): variables[option].encode()
            for name, option in upstream.secret_headers.items()
            if variables.get(option)
        }
        self._secrets = [key.encode() for key in dict.fromkeys(self._keys.values()) if key]
        self._secrets += self._more_keys.values()
        self.answer_filter = answer_filter(surface)
        self.options = {one.variable: variables.get(one.variable, one.default) for one in surface.options}
        self.origin = _origin(upstream.url_env, variables.get(upstream.url_env, upstream.base_url))
        self._socket_origins = {
            one.name: _socket_origin(upstream, one.socket, variables)
            for one in surface.operations
            if one.socket is not None
        }
        self.timeouts = Timeouts(
            connect_s=bounds.connect_timeout_s,
            first_byte_s=bounds.first_byte_timeout_s,
            idle_s=bounds.idle_timeout_s,
            pool_idle_s=bounds.pool_idle_s,
            answer_s=bounds.answer_timeout_s,
        )
        self.fixed_headers = (
            *((name.encode(), value.encode()) for name, value in upstream.fixed_headers.items()),
            *self._more_keys.items(),
        )
        self._has_sockets = any(one.is_websocket for one in surface.operations)
        self._questions = tuple(
            {
                one.spliced.question.path: one.spliced.question
                for one in surface.operations
                if one.spliced is not None and one.spliced.question is not None
            }.values()
        )
        self._exact: dict[tuple[str, bytes], Operation] = {}
        self._templates: list[tuple[str, re.Pattern[bytes], Operation]] = []
        for operation in surface.operations:
            self._index(operation)

    def answer_headers(self, headers: Headers) -> Headers:
        """A vendor's headers as they may go down."""
        for secret in self._secrets or (b"",):
            headers = self.answer_filter.passed(headers, secret=secret)
        return headers

    @property
    def has_key(self) -> bool:
        """Whether the surface's own key is set."""
        return bool(self._keys[self.surface.upstream.key_env])

    @property
    def key_header(self) -> tuple[bytes, bytes]:
        """The header with the surface's own key. Raises Refused(NOT_CONFIGURED)."""
        key_env = self.surface.upstream.key_env
        if key_env not in self._key_headers:
            raise Refused(
                Reason.NOT_CONFIGURED,
                f"This proxy has no key for {self.surface.name}: the operator must set {key_env}.",
            )
        return self._key_headers[key_env]

    def credential(self, operation: Operation) -> tuple[bytes, bytes]:
        """The header with the vendor's key for an operation. Raises Refused(NOT_CONFIGURED)."""
        return self._key_headers.get(operation.key_env) or self.key_header

    def repeats_key(self, said: bytes) -> bool:
        """Whether what a vendor said repeats a key, as it is or as JSON may write it, too: then nobody else may read it."""
        if b"\\" in said:
            said = _ESCAPED.sub(lambda found: found[1] or bytes((int(found[2], 16),)), said)
        for secret in self._secrets:  # noqa: SIM110 - of every answer's request id: without a generator
            if secret in said:
                return True
        return False

    def match(self, method: str, path: bytes) -> tuple[Operation, Mapping[str, str]]:
        """The operation that `path` (raw, below the mount) names, and its path parameters, decoded. The mount itself is `/`.

        Raises Refused(UNKNOWN_OPERATION): only what is declared exists.
        """
        operation = self._exact.get((method, path or b"/"))
        if operation is not None:
            return operation, _NO_PIECES_NAMED
        is_safe = not _UNSAFE.search(path)
        for known, pattern, templated in self._templates:
            if known == method and (found := pattern.fullmatch(path)):
                if not is_safe and not _is_safe_around(found):
                    continue
                params = {
                    name.removesuffix(_WIDE): urllib.parse.unquote_to_bytes(value)
                    for name, value in found.groupdict().items()
                }
                try:
                    return templated, {name: value.decode() for name, value in params.items()}
                except UnicodeDecodeError:
                    break
        raise Refused(
            Reason.UNKNOWN_OPERATION,
            f"{method} {path.decode('ascii', 'replace')[:200]} is not available through this proxy.",
        )

    def is_socket(self, method: str, path: bytes) -> bool:
        """Whether a request there asks for a websocket that is declared."""
        if not self._has_sockets:
            return False
        try:
            return self.match(method, path)[0].is_websocket
        except Refused:
            return False

    def asked(self, method: str, path: bytes) -> tuple[bytes, Question | None]:
        """The path of the websocket that a request asks a question about, and the question; else the path itself."""
        if method == "GET":
            for question in self._questions:
                about = path.removesuffix(b"/").removesuffix(question.path.encode())
                if len(about) < len(path) - 1 and self.is_socket(method, about):
                    return about, question
        return path, None

    def operation(self, name: str) -> Operation:
        """The operation of this name."""
        return next(one for one in self.surface.operations if one.name == name)

    def leads_within(self, operation: Operation, url: str) -> tuple[Origin, str] | None:
        """Where a websocket is that the vendor names, and the path and query there; None where that is not the vendor's."""
        assert operation.spliced is not None
        try:
            parts = urllib.parse.urlsplit(_WS.sub("http", url))
            origin = Origin.parse(f"{parts.scheme}://{parts.netloc}")
        except ValueError:
            return None
        is_own = origin == self.origin
        is_under = origin.scheme == "https" and any(
            origin.host == host or origin.host.endswith(f".{host}") for host in operation.spliced.hosts
        )
        if not (is_own or is_under) or not url.isascii() or not url.isprintable() or " " in url:
            return None
        return origin, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def token_places_of(self, operation: Operation) -> TokenPlaces:
        """Where its gateway token may stand."""
        return self.token_places if operation.socket is None else self._places_of_sockets[operation.name]

    def socket_origin(self, operation: Operation) -> Origin:
        """Where the vendor's side of an operation's websocket is."""
        return self._socket_origins[operation.name]

    def upstream_path(self, operation: Operation, path: bytes, pieces: Mapping[str, str]) -> bytes:
        """Where a request to `path` goes at the vendor: pieces of the path stand there as they came."""
        return (
            self._filled(operation, operation.upstream_path, path, pieces)
            if operation.upstream_path
            else path
        )

    def look_up_path(
        self, operation: Operation, template: str, path: bytes, pieces: Mapping[str, str]
    ) -> bytes:
        """Where an object is that the operation looks up: with pieces of its path, and these. Raises
        Refused(OBJECT_NOT_FOUND) where one of these is no piece of a path."""
        if any(value in _NO_PIECES for value in pieces.values()):
            raise Refused(Reason.OBJECT_NOT_FOUND, "Not found.")
        return self._filled(operation, template, path, pieces)

    def _filled(self, operation: Operation, template: str, path: bytes, more: Mapping[str, str]) -> bytes:
        pieces = {name: urllib.parse.quote(value, safe="").encode() for name, value in more.items()}
        for _, pattern, known in self._templates:
            if known is operation and (found := pattern.fullmatch(path)):
                pieces |= {name.removesuffix(_WIDE): value for name, value in found.groupdict().items()}
        return _NAMED.sub(lambda piece: pieces[piece[1].decode()], template.encode())

    def _index(self, operation: Operation) -> None:
        if "{" not in operation.path:
            self._exact[operation.method, operation.path.encode()] = operation
            return
        pattern, written = "", 0
        for piece in _PIECE.finditer(operation.path):
            name, choices = piece["name"], "[^/]+"
            if piece["choices"] == _ANYTHING:
                name, choices = name + _WIDE, ".+"
            elif piece["choices"]:
                choices = "|".join(map(re.escape, piece["choices"].split("|")))
            pattern += f"{re.escape(operation.path[written : piece.start()])}(?P<{name}>{choices})"
            written = piece.end()
        pattern += re.escape(operation.path[written:])
        self._templates.append((operation.method, re.compile(pattern.encode()), operation))


def _origin(variable: str, url: str) -> Origin:
    try:
        return Origin.parse(url)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from error


def _socket_origin(upstream: Upstream, socket: EventSocket, variables: Mapping[str, str]) -> Origin:
    """By its own override, the surface's, or as declared; `ws` is HTTP."""
    for variable in (socket.url_env, upstream.url_env):
        if variable in variables:
            return _origin(variable, _WS.sub("http", variables[variable]))
    return _origin(socket.url_env, _WS.sub("http", socket.base_url))


def _is_safe_around(found: re.Match[bytes]) -> bool:
    """Whether a path that has what no declared path has (see _UNSAFE) has it within a piece that may be anything, and
    nothing that a vendor could resolve there either: no dot segments, no backslash, no null, as it stands and decoded."""
    for name, value in found.groupdict().items():
        if name.endswith(_WIDE):
            begin, end = found.span(name)
            around = found.string[:begin] + b"x" + found.string[end:]
            decoded = urllib.parse.unquote_to_bytes(value)
            segments = (one.partition(b";")[0] for one in decoded.split(b"/"))
            is_plain = _DOTS.isdisjoint(segments) and not (b"\\" in decoded or b"\0" in decoded)
            return is_plain and not _UNSAFE.search(around)
    return False


def by_mount(mounted: Iterable[Mounted]) -> list[tuple[bytes, Mounted]]:
    """(mount, surface) for every mount and alias, the longest first, so that none hides another."""
    pairs = [(mount.encode(), item) for item in mounted for mount in item.surface.mounts]
    return sorted(pairs, key=lambda pair: -len(pair[0]))
