"""The `browserbase` SDK, driven from outside as `driving.py` says."""

import base64

import browserbase
from browserbase._response import AsyncBinaryAPIResponse, BinaryAPIResponse
from driving import drive


def file_of(name, text):
    return (name, text.encode())


ACTS = {
    "create": lambda bb, **more: bb.sessions.create(**more),
    "retrieve": lambda bb, of: bb.sessions.retrieve(of),
    "list": lambda bb, **more: bb.sessions.list(**more),
    "release": lambda bb, of: bb.sessions.update(of, status="REQUEST_RELEASE"),
    "debug": lambda bb, of: bb.sessions.debug(of),
    "logs": lambda bb, of: bb.sessions.logs.list(of),
    "recording": lambda bb, of: bb.sessions.recording.retrieve(of),
    "make_movies": lambda bb, of: bb.sessions.recording.downloads.create(of),
    "movies": lambda bb, of: bb.sessions.recording.downloads.list(of),
    "replays": lambda bb, of: bb.sessions.replays.retrieve(of),
    "downloads": lambda bb, of: bb.sessions.downloads.list(of),
    "upload": lambda bb, of, name, text: bb.sessions.uploads.create(of, file=file_of(name, text)),
    "create_context": lambda bb, **more: bb.contexts.create(**more),
    "context": lambda bb, of: bb.contexts.retrieve(of),
    "delete_context": lambda bb, of: bb.contexts.delete(of),
    "create_extension": lambda bb, name, text: bb.extensions.create(file=file_of(name, text)),
    "extension": lambda bb, of: bb.extensions.retrieve(of),
    "delete_extension": lambda bb, of: bb.extensions.delete(of),
    "projects": lambda bb: bb.projects.list(),
}
"""What callers do with either client."""


def plain(answer):
    """As JSON knows it; bytes as base64."""
    if isinstance(answer, bytes):
        return base64.b64encode(answer).decode()
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    return answer.to_dict(mode="json") if hasattr(answer, "to_dict") else answer


class Sync:
    client_class = browserbase.Browserbase
    is_async = False

    def __init__(self, client, seen):
        self.client = client

    def __getattr__(self, do):
        def act(**given):
            answer = ACTS[do](self.client, **given)
            return plain(answer.read() if isinstance(answer, BinaryAPIResponse) else answer)

        return act


class Async:
    client_class = browserbase.AsyncBrowserbase
    is_async = True

    def __init__(self, client, seen):
        self.client = client

    def __getattr__(self, do):
        async def act(**given):
            answer = await ACTS[do](self.client, **given)
            return plain(await answer.read() if isinstance(answer, AsyncBinaryAPIResponse) else answer)

        return act


if __name__ == "__main__":
    drive(browserbase.__version__, {"sync": Sync, "async": Async})
