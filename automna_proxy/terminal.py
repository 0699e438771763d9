"""Standard output carries answers and nothing else; everything said beside them goes to standard error."""

import sys
from contextlib import suppress
from typing import Any

import orjson
from rich.console import Console

from automna_proxy.tables import Table, printable

PROGRAM = "automna-proxy"


class OutputError(Exception):
    """Standard output takes no more: its disk is full. (A reader that has left, as `head` does, is none.)"""


def say(line: str) -> None:
    """One line of an answer."""
    show_text(f"{line}\n")


def show_text(text: str) -> None:
    """An answer as it is, with the line ends that it has."""
    if sys.stdout is None:
        raise OutputError("cannot write to standard output: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError):  # what is still buffered would be tried, and complained of, again at the end
            sys.stdout.close()
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def note(line: str) -> None:
    """One line beside the answer: what was done, or what is wrong."""
    print(f"{PROGRAM}: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201 - as above


def show(table: Table) -> None:
    """A table: boxed on a terminal, tab-separated in a pipe."""
    if sys.stdout is not None and sys.stdout.isatty():
        table.print_on(Console(file=sys.stdout))
    else:
        say("\n".join(table.as_lines()))


def show_json(document: Any, *, is_line: bool = False) -> None:
    """One JSON document; `is_line` for one of many, each on a line of its own."""
    say(orjson.dumps(document, option=0 if is_line else orjson.OPT_INDENT_2).decode())
