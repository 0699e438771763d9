"""What others said, as an agent is told of it: as data, on lines that are marked, and no more than so much."""

from typing import Any

TEXT_CHARS_MAX = 4_000
LINE_CHARS_MAX = 300


def line(value: Any) -> str:
    """On one line, whatever was in it; empty of what is no text."""
    return " ".join(str(value).split())[:LINE_CHARS_MAX] if isinstance(value, str) else ""


def quoted(text: Any) -> str:
    """A text with a mark before each of its lines, cut where it is too long; empty of what is no text."""
    if not isinstance(text, str):
        return ""
    lines = "\n".join(f"> {one}" for one in text[:TEXT_CHARS_MAX].splitlines())
    if len(text) <= TEXT_CHARS_MAX:
        return lines
    return f"{lines}\n(The first {TEXT_CHARS_MAX:,} characters of {len(text):,}.)"
