"""A vendor that answers every declared operation with its example, and can be made to say what no vendor should."""

from collections.abc import Sequence

import orjson

from proxy.json_walk import value_at
from proxy.mounted import Mounted
from proxy.query import value_of, without
from proxy.surface import Operation, Surface
from simulators.script import Ready, Script, head
from simulators.server import ReceivedRequest, SimulatorServer

Pairs = Sequence[tuple[str, str]]
HOME = "home1"
"""The id of every home of the user there."""


class StandIn(SimulatorServer):
    """The vendor of one surface, as far as its examples go."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self.surface = surface
        self.mounted: Mounted | None = None
        """Says where requests go."""
        self.about: Operation | None = None
        """The operation that is asked for; what it looks up before is answered whatever else is said here."""
        self.more_headers: Pairs = ()
        """Sent with every answer."""
        self.fails_with: tuple[int, bytes] | None = None
        """Status and body of an error instead of every answer."""

        self.answers_with: Ready | Script | None = None
        """Instead of every answer, an error or not."""
        self.answers_any_path_of: Operation | None = None
        """Answer with this one's example, whatever ids stand in the path."""
        self.has_begun = False
        """What costs by the second is found by the tag of its request."""

    @property
    def asked(self) -> list[ReceivedRequest]:
        """The requests that were forwarded; without what was looked up for them, or asked about their work."""
        aside = (self._is_look_up, self._is_about_work)
        return [request for request in self.requests if not any(is_so(request) for is_so in aside)]

    def answer(self, request: ReceivedRequest) -> Ready | Script:
        if self._is_look_up(request):
            return self._says(self._looked_up().example.answer, "application/json")
        if self._is_list_by_tag(request):
            return self._says(self._listed_by_tag(), "application/json")
        if self.answers_with is not None and not self._is_about_work(request):
            return self.answers_with
        example = (self.answers_any_path_of or self._operation(request)).example
        if self.fails_with is not None and not self._is_about_work(request):
            status, body = self.fails_with
            return self._says(body, "application/json", status=status)
        return self._says(example.answer, example.answer_content_type)

    def upstream_target(self, operation: Operation) -> str:
        """Where the example of an operation goes."""
        path, joint, query = operation.example.path.partition("?")
        if operation.upstream_path:
            assert self.mounted is not None
            pieces = dict.fromkeys(operation.homes, HOME)
            pieces |= {name: value_of(name, query.encode()) or "" for name in operation.in_path}
            query = without(operation.in_path, query.encode()).decode()
            path = self.mounted.upstream_path(operation, path.encode(), pieces).decode()
            joint = joint if query else ""
        return path + joint + query

    def _says(self, body: bytes, content_type: str, *, status: int = 200) -> Ready:
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), *self.more_headers]
        return Ready(head(status, headers) + body)

    def _is_look_up(self, request: ReceivedRequest) -> bool:
        return self.about is not None and self.about.looks_up is not None and request.method == "GET"

    def _is_list_by_tag(self, request: ReceivedRequest) -> bool:
        """Asked by the proxy itself, about work whose answer was lost."""
        listed = [one.deferred.by_tag.path for one in self._timed() if one.deferred and one.deferred.by_tag]
        return request.method == "GET" and any(
            request.target.startswith(path.partition("{")[0]) for path in listed
        )

    def _is_about_work(self, request: ReceivedRequest) -> bool:
        """As above, or about the work itself, once it is found."""
        is_found = self.about in self._timed() and request.method == "GET"
        return self._is_list_by_tag(request) or is_found

    def _listed_by_tag(self) -> bytes:
        """What the last request about it has begun."""
        operation = self.about
        assert operation is not None
        assert operation.deferred is not None
        assert operation.deferred.by_tag is not None
        assert operation.tag is not None
        listed = operation.deferred.by_tag
        found: object = []
        if self.has_begun:
            asked = orjson.loads(self.asked[-1].body)
            item = orjson.loads(operation.example.answer)
            *way, last = listed.tag.split(".")
            holder = item
            for key in way:
                holder = holder.setdefault(key, {})
            holder[last] = value_at(asked, operation.tag.field.split("."))
            found = [item]
        for key in reversed(listed.items.split(".") if listed.items else []):
            found = {key: found}
        return orjson.dumps(found)

    def _timed(self) -> list[Operation]:
        return [one for one in self.surface.operations if one.timed is not None]

    def _looked_up(self) -> Operation:
        assert self.about is not None
        assert self.about.looks_up is not None
        path = self.about.looks_up.path
        return next(
            one
            for one in self.surface.operations
            if one.method == "GET" and one.path.replace(":*}", "}") == path
        )

    def _operation(self, request: ReceivedRequest) -> Operation:
        for operation in self.surface.operations:
            path = self.upstream_target(operation).partition("?")[0]
            if (operation.method, path) == (request.method, request.path):
                return operation
        for operation in self._timed():  # asked about by the proxy itself, where its users have other paths
            assert operation.deferred is not None
            if request.method == "GET" and request.path.startswith(operation.deferred.path.partition("{")[0]):
                return operation
        raise AssertionError(f"nothing declared sends {request.method} {request.target}")
