"""How far a user's machine has come, told on standard error while a command waits: live on a terminal, else a line for each stage."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from automna_proxy.tables import printable
from automna_proxy.terminal import note
from provisioning.instances import ERROR, STATUSES, Event

WISHED = "wished"
MADE = "_made"
"""How the events end that tell of one thing which is there: the stages say enough."""


class Teller(Protocol):
    """Told each event, in their order."""

    def tell(self, event: Event) -> None: ...


@contextmanager
def progress_of(user_id: str) -> Iterator[Teller]:
    """Told until the end of the block."""
    if not sys.stderr.isatty():
        yield Lines(user_id)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Live(user_id, progress)


class Lines:
    """For logs and pipes."""

    def __init__(self, user_id: str) -> None:
        self._user_id = user_id

    def tell(self, event: Event) -> None:
        if (words := words_of(event)) is not None:
            note(f"machine of {self._user_id}: {words}")


class Live:
    """For whoever looks on: what is done stands above what is being done."""

    def __init__(self, user_id: str, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(f"machine of {user_id}"))
        self._stage = ""
        self._since_s = time.monotonic()

    def tell(self, event: Event) -> None:
        words = words_of(event)
        if words is None:
            return
        if event.kind not in STATUSES:
            self._progress.console.print(f"[yellow]![/] {escape(words)}")
            return
        if self._stage:
            took_s = time.monotonic() - self._since_s
            mark = "[red]✗[/]" if event.kind == ERROR else "[green]✓[/]"
            self._progress.console.print(f"{mark} {escape(self._stage)}  [dim]{took_s:.1f} s[/]")
        self._stage, self._since_s = words, time.monotonic()
        self._progress.update(self._task, description=escape(words))


def words_of(event: Event) -> str | None:
    """An event as people read it; None for one that says nothing new to them."""
    if event.kind == WISHED or event.kind.endswith(MADE):
        return None
    said = event.kind.replace("_", " ")
    if event.details:
        said += ": " + ", ".join(f"{name} {_value(value)}" for name, value in event.details.items())
    return printable(said)


def _value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
