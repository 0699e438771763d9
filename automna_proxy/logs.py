"""Logging of the process: one line per event on standard error, as text for people or JSON for machines."""

import asyncio
import logging
import sys
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import TextIO

import orjson

from automna_proxy.settings import Settings

REQUESTS = "automna_proxy.requests"
"""The logger of canonical lines: its messages are complete lines in the chosen format already."""

TURN_LINES_MAX = 1_000
"""Lines of one turn that are kept before they are written anyway."""


class _Timed(logging.Formatter, ABC):
    """Writes a second once, and not for each of its lines."""

    def __init__(self, line: str | None = None) -> None:
        super().__init__(line)
        self._second = -1
        self._written = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        return self._instant(record.created, record.msecs)

    @abstractmethod
    def canonical(self, line: str, at_s: float) -> str:
        """What `format` makes of the record of a canonical line, without that record."""

    def _instant(self, at_s: float, ms: float) -> str:
        second = int(at_s)
        if second != self._second:
            self._written = time.strftime(self.default_time_format, self.converter(second))
            self._second = second
        return "%s,%03d" % (self._written, ms)  # noqa: UP031 - half the time of an f-string


class _Text(_Timed):
    """For people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if record.args or record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname:<7} {record.name}: {record.msg}"

    def canonical(self, line: str, at_s: float) -> str:
        return self._instant(at_s, at_s % 1 * 1000) + _AS_TEXT + line


class _Json(_Timed):
    """Every line one JSON object. A canonical line is one already and is continued, not quoted."""

    def format(self, record: logging.LogRecord) -> str:
        message, at, level = record.getMessage(), self.formatTime(record), record.levelname.lower()
        if record.name == REQUESTS and message.startswith('{"') and not record.exc_info:
            return _continued(message, at, level)
        fields = {"at": at, "level": level, "logger": record.name, "message": message}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()

    def canonical(self, line: str, at_s: float) -> str:
        return _continued(line, self._instant(at_s, at_s % 1 * 1000), "info")


_AS_TEXT = f" {'INFO':<7} {REQUESTS}: "


def _continued(line: str, at: str, level: str) -> str:
    return f'{{"at":"{at}","level":"{level}","logger":"{REQUESTS}",{line[1:]}'


class TurnHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of the event loop together: under load, a system call for many lines.

    What other threads log, or what is logged where no loop runs, is written at once.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._add(self.format(record))
        except Exception:  # noqa: BLE001 - logging's own way: a line that cannot be written breaks nothing
            self.handleError(record)

    def say(self, line: str) -> None:
        """A canonical line; as `handle` its record."""
        assert isinstance(self.formatter, _Timed)
        try:
            with self.lock or nullcontext():
                self._add(self.formatter.canonical(line, time.time()))  # noqa: TID251 - as logging's records
        except Exception:  # noqa: BLE001 - as above
            self.handleError(logging.makeLogRecord({"name": REQUESTS, "msg": line}))

    def flush(self) -> None:
        self._write()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= TURN_LINES_MAX:
            self._write()
        elif len(self._lines) == 1:
            self._write_soon()

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


class CanonicalLines:
    """Says canonical lines, at level INFO. The handler that `configure_logging` has set gets them as they are where nobody else
    listens: the library's record of a line is made by fifteen calls, and would say no more."""

    def __init__(self) -> None:
        self._logger, self._root = logging.getLogger(REQUESTS), logging.getLogger()
        self._ours = [handler for handler in self._root.handlers if isinstance(handler, TurnHandler)]

    def say(self, line: str) -> None:
        """`line` is complete, in the chosen format."""
        logger, root, ours = self._logger, self._root, self._ours
        is_unheard = logger.parent is root and not logger.handlers and not logger.filters
        if ours and root.handlers == ours and is_unheard and logger.propagate:
            ours[0].say(line)
        else:
            logger.info(line)


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
