"""How the demo asks: with curl, with the vendor's own SDK, or with the standard library where one is missing."""

import http.client
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from automna_proxy.demo_apis import MESSAGES, Api

ANSWER_TIMEOUT_S = 30.0
"""For a whole answer: the simulated ones take less than a second."""
REQUEST_ID = "x-automna-request-id"
CURL_WENT_WELL = 0
DONE = b"[DONE]"
"""What OpenAI says at the end of a stream, where others say nothing or an event."""

OnText = Callable[[str], bool]
"""Gets each piece of text as it arrives; False leaves in mid-stream."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw. `error` is `type: message` in the vendor's words; `is_whole`: it came to its end.

    `object_id`: of a whole answer that has one. `tells_usage`: a piece of a stream told the usage.
    """

    status: int
    request_id: str
    text: str = ""
    error: str = ""
    is_whole: bool = True
    object_id: str = ""
    tells_usage: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. `body` None is a GET."""

    api: Api
    path: str
    body: Mapping[str, Any] | None


class Client(Protocol):
    """Sends one request."""

    @property
    def name(self) -> str: ...

    def ask(self, request: Request, gateway_token: str, on_text: OnText) -> Seen: ...


class Lines(Protocol):
    """A body as it arrives: a pipe or a response."""

    def readline(self) -> bytes: ...

    def read(self) -> bytes: ...


class Curl:
    """The program `curl`, without its owner's proxies and settings."""

    name = "curl"

    def __init__(self, program: str, url: str, environment: Mapping[str, str]) -> None:
        self._command = [program, "--disable", "--noproxy", "*", "--no-progress-meter", "--no-buffer"]
        self._command += ["--include", "--max-time", f"{ANSWER_TIMEOUT_S:g}"]
        self._url = url
        self._environment = dict(environment)

    def ask(self, request: Request, gateway_token: str, on_text: OnText) -> Seen:
        words = [self._url + request.path]
        for name, value in request.api.headers(gateway_token).items():
            words += ["-H", f"{name}: {value}"]
        if request.body is not None:
            words += ["--data-binary", "@-"]
        process = subprocess.Popen(  # noqa: S603 - arguments of our own, no shell
            [*self._command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            try:
                process.stdin.write(_encoded(request.body))
                process.stdin.close()
                status, answer_headers = _head(process.stdout)
                seen = _seen(request.api, status, answer_headers, process.stdout, on_text)
                if seen.is_whole and process.wait() != CURL_WENT_WELL:
                    return Seen(seen.status, seen.request_id, seen.text, "curl: the answer broke off", False)
                return seen
            finally:
                process.kill()


class StandardLibrary:
    """`http.client`, which knows of no proxies and no keys: stands in where a client is not installed."""

    name = "python"

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)

    def ask(self, request: Request, gateway_token: str, on_text: OnText) -> Seen:
        address = self._address
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=ANSWER_TIMEOUT_S
        )
        try:
            method = "GET" if request.body is None else "POST"
            headers = request.api.headers(gateway_token)
            connection.request(method, request.path, _encoded(request.body), headers)
            response = connection.getresponse()
            answer_headers = {name.lower(): value for name, value in response.getheaders()}
            return _seen(request.api, response.status, answer_headers, response, on_text)
        except (OSError, http.client.HTTPException) as error:
            return Seen(0, "", error=f"{type(error).__name__}: {error}", is_whole=False)
        finally:
            connection.close()


class AnthropicSdk:
    """The vendor's Python SDK as it is: a base URL and a key are all that differs."""

    name = "sdk"

    def __init__(self, library: Any, url: str) -> None:
        self._library = library
        self._base_url = url + MESSAGES.path.removesuffix("/v1/messages")

    def ask(self, request: Request, gateway_token: str, on_text: OnText) -> Seen:
        body = request.body or {}
        http_client = self._library.DefaultHttpxClient(trust_env=False)
        with self._library.Anthropic(
            api_key=gateway_token,
            base_url=self._base_url,
            timeout=ANSWER_TIMEOUT_S,
            http_client=http_client,
        ) as client:
            try:
                if body.get("stream"):
                    return self._stream(client, body, on_text)
                answer = client.messages.with_raw_response.create(**body)
            except self._library.APIStatusError as error:
                told = f"anthropic.{type(error).__name__}: {_told_by(error)}"
                return Seen(error.status_code, error.response.headers.get(REQUEST_ID, ""), error=told)
            except self._library.APIError as error:
                return Seen(0, "", error=f"anthropic.{type(error).__name__}: {error}", is_whole=False)
        text = MESSAGES.text_of(json.loads(answer.text()))
        on_text(text)
        return Seen(answer.status_code, answer.headers.get(REQUEST_ID, ""), text)

    def _stream(self, client: Any, body: Mapping[str, Any], on_text: OnText) -> Seen:
        fields = {name: value for name, value in body.items() if name != "stream"}
        pieces: list[str] = []
        is_whole = True
        with client.messages.stream(**fields) as stream:
            for piece in stream.text_stream:
                pieces.append(piece)
                if not on_text(piece):
                    is_whole = False
                    break
            headers = stream.response.headers
            return Seen(
                stream.response.status_code, headers.get(REQUEST_ID, ""), "".join(pieces), "", is_whole
            )


def _told_by(error: Any) -> str:
    """The message of a status error: what stands in its body, when that is the vendor's shape."""
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    return str(inner.get("message") if isinstance(inner, dict) else error)


# --- reading an answer --------------------------------------------------------------------------------


def _head(lines: Lines) -> tuple[int, dict[str, str]]:
    """Status and headers as `curl --include` prints them; (0, {}) when there was no answer."""
    words = lines.readline().split()
    headers = {}
    while line := lines.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return (int(words[1]) if len(words) > 1 else 0), headers


def _encoded(body: Mapping[str, Any] | None) -> bytes:
    return b"" if body is None else json.dumps(body).encode()


def _seen(api: Api, status: int, headers: Mapping[str, str], lines: Lines, on_text: OnText) -> Seen:
    request_id = headers.get(REQUEST_ID, "")
    if headers.get("content-type", "").startswith("text/event-stream"):
        return _streamed(api, status, request_id, lines, on_text)
    body = lines.read()
    try:
        answer = json.loads(body)
    except ValueError:
        return Seen(status, request_id, error=f"not JSON: {body[:200]!r}", is_whole=False)
    if answer.get("error"):
        return Seen(status, request_id, error=_error_of(api, answer))
    text = api.text_of(answer)
    on_text(text)
    return Seen(status, request_id, text, object_id=answer.get("id", ""))


def _streamed(api: Api, status: int, request_id: str, lines: Lines, on_text: OnText) -> Seen:
    pieces: list[str] = []
    is_whole = tells_usage = False
    while line := lines.readline():
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        is_whole = data == DONE
        if is_whole:
            break
        event = json.loads(data)
        if "error" in event:
            return Seen(status, request_id, "".join(pieces), _error_of(api, event), is_whole=False)
        tells_usage = tells_usage or api.tells_usage(event)
        piece = api.text_of(event)
        pieces.append(piece)
        stays = not piece or on_text(piece)
        is_whole = api.is_last(event)
        if is_whole or not stays:
            break
    if is_whole:
        lines.read()
    return Seen(status, request_id, "".join(pieces), is_whole=is_whole, tells_usage=tells_usage)


def _error_of(api: Api, answer: Mapping[str, Any]) -> str:
    """What kind of error, in the vendor's word for it, and what it says; a text may have a message beside it."""
    error, (kind, told) = answer["error"], api.error_names
    if isinstance(error, str):
        return ": ".join(filter(None, (error, answer.get("message"))))
    return f"{error.get(kind)}: {error.get(told)}"
