"""Logging of the process: one line per event on standard error, as text for people or JSON for machines."""

import asyncio
import logging
import sys
from contextlib import nullcontext
from typing import TextIO

import orjson

from automna_proxy.settings import Settings

REQUESTS = "automna_proxy.requests"
"""The logger of canonical lines: its messages are complete lines in the chosen format already."""

TURN_LINES_MAX = 1_000
"""Lines of one turn that are kept before they are written anyway."""


class _Json(logging.Formatter):
    """Every line one JSON object. A canonical line is one already and is taken apart, not quoted."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        fields = {"at": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name}
        if record.name == REQUESTS and message.startswith("{"):
            fields |= orjson.loads(message)
        else:
            fields["message"] = message
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


class TurnHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of the event loop together: under load, a system call for many lines.

    What other threads log, or what is logged where no loop runs, is written at once.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
            if len(self._lines) >= TURN_LINES_MAX:
                self._write()
            elif len(self._lines) == 1:
                self._write_soon()
        except Exception:  # noqa: BLE001 - logging's own way: a line that cannot be written breaks nothing
            self.handleError(record)

    def flush(self) -> None:
        self._write()

    def _write_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
        else:
            loop.call_soon(self._write)

    def _write(self) -> None:
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
                self.stream.flush()


def configure_logging(settings: Settings) -> None:
    """Send everything to standard error. httpx and uvicorn speak only when something is wrong."""
    handler = TurnHandler(sys.stderr)
    # What no line of ours shows need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as its HOWTO advises: nor where a line was logged
    if settings.log_format == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
