"""A vendor that answers every declared operation with its example, and can be made to say what no vendor should."""

from collections.abc import Sequence

from proxy.surface import Operation, Surface
from simulators.script import Ready, Script, head
from simulators.server import ReceivedRequest, SimulatorServer

Pairs = Sequence[tuple[str, str]]


class StandIn(SimulatorServer):
    """The vendor of one surface, as far as its examples go."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self.surface = surface
        self.more_headers: Pairs = ()
        """Sent with every answer."""
        self.fails_with: tuple[int, bytes] | None = None
        """Status and body of an error instead of every answer."""

        self.answers_with: Ready | Script | None = None
        """Instead of every answer, an error or not."""
        self.answers_any_path_of: Operation | None = None
        """Answer with this one's example, whatever ids stand in the path."""

    def answer(self, request: ReceivedRequest) -> Ready | Script:
        if self.answers_with is not None:
            return self.answers_with
        example = (self.answers_any_path_of or self._operation(request)).example
        status, body = self.fails_with or (200, example.answer)
        headers = [
            ("Content-Type", example.answer_content_type if self.fails_with is None else "application/json"),
            ("Content-Length", str(len(body))),
            *self.more_headers,
        ]
        return Ready(head(status, headers) + body)

    def _operation(self, request: ReceivedRequest) -> Operation:
        for operation in self.surface.operations:
            if (operation.method, operation.example.path.partition("?")[0]) == (request.method, request.path):
                return operation
        raise AssertionError(f"nothing declared sends {request.method} {request.target}")
