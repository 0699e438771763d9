"""Logging of the process: one line per event on standard error, as text for people or JSON for machines."""

import asyncio
import logging
import sys
import time
from contextlib import nullcontext
from typing import TextIO

import orjson

from automna_proxy.settings import Settings

REQUESTS = "automna_proxy.requests"
"""The logger of canonical lines: its messages are complete lines in the chosen format already."""

TURN_LINES_MAX = 1_000
"""Lines of one turn that are kept before they are written anyway."""


class _Timed(logging.Formatter):
    """Writes a second once, and not for each of its lines."""

    def __init__(self, line: str | None = None) -> None:
        super().__init__(line)
        self._second = -1
        self._written = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        second = int(record.created)
        if second != self._second:
            self._written = time.strftime(self.default_time_format, self.converter(second))
            self._second = second
        return f"{self._written},{int(record.msecs):03d}"


class _Text(_Timed):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if record.args or record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname:<7} {record.name}: {record.msg}"


class _Json(_Timed):
    """Every line one JSON object. A canonical line is one already and is continued, not quoted."""

    def format(self, record: logging.LogRecord) -> str:
        message, at, level = record.getMessage(), self.formatTime(record), record.levelname.lower()
        if record.name == REQUESTS and message.startswith('{"') and not record.exc_info:
            return f'{{"at":"{at}","level":"{level}","logger":"{REQUESTS}",{message[1:]}'
        fields = {"at": at, "level": level, "logger": record.name, "message": message}
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
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
