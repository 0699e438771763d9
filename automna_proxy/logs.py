"""Logging of the process: one line per event on standard error, as text for people or JSON for machines."""

import logging
import sys

import orjson

from automna_proxy.settings import Settings

REQUESTS = "automna_proxy.requests"
"""The logger of canonical lines: its messages are complete lines in the chosen format already."""


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


def configure_logging(settings: Settings) -> None:
    """Send everything to standard error. httpx and uvicorn speak only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn.error", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
