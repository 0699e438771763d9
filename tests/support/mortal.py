"""A process that dies, or stands still, at any instant, within the test's own process: whatever runs in it is never resumed.

Of the dead no `finally` and no `except` runs. Its connections end, as the system ends them; what it had handed to its store's
writer, and the writer had not taken yet, is lost. Its tasks end, so that nobody waits for them; its coroutines lie where they fell for
ever, since to collect one would run it.
"""

import asyncio
import ctypes
import enum
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any

from metering.store.writer import GroupCommitWriter


class Fate(enum.Enum):
    """What becomes of a process at an instant."""

    LIVES = enum.auto()
    DIES = enum.auto()
    STANDS_STILL = enum.auto()


_current: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """Everything that is started in it, and all that that starts, is of it. At each of its instants it asks `fate` what becomes of
    it: an instant is when something in it has just handed over, or when what it waited for has just come."""

    def __init__(self, fate: Callable[[int], Fate] = lambda _number: Fate.LIVES) -> None:
        self.instants = 0
        """How many there were: `fate` is asked with it."""
        self.place = ""
        """Where it died or stood still."""
        self.is_dead = False
        self.died = asyncio.Event()
        self.stood_still = asyncio.Event()
        self.writers: list[GroupCommitWriter] = []
        """Of its stores."""
        self._fate = fate
        self._goes_on: asyncio.Future[None] | None = None
        self._tasks: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}
        self._transports: list[asyncio.Transport] = []

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Whether it came to its end; raises what it raises. False: the process died of it, or stands still."""
        token = _current.set(self)
        try:
            running = asyncio.get_running_loop().create_task(coroutine)
        finally:
            _current.reset(token)
        ends = [self.died, self.stood_still]
        ending = {asyncio.get_running_loop().create_task(event.wait()) for event in ends}
        await asyncio.wait({running, *ending}, return_when=asyncio.FIRST_COMPLETED)
        for task in ending:
            task.cancel()
        if self.is_dead or not running.done():
            self._running = running
            return False
        await running
        return True

    async def go_on(self) -> None:
        """Where it stood still, to its end."""
        assert self._goes_on is not None, "it stands still"
        self._goes_on.set_result(None)
        await self._running

    def adopt(self, task: "asyncio.Task[Any]", coroutine: Coroutine[Any, Any, Any]) -> None:
        self._tasks[task] = coroutine
        task.add_done_callback(self._tasks.pop)

    def connect(self, transport: asyncio.Transport) -> None:
        self._transports.append(transport)

    def passes(self, coroutine: Any) -> "asyncio.Future[None] | None":
        """An instant. What it then waits for before it goes on, if anything."""
        if self.is_dead:
            return None
        if self.stood_still.is_set():
            return self._goes_on
        fate = self._fate(self.instants)
        self.instants += 1
        if fate is not Fate.LIVES:
            self.place = place_of(coroutine)
        if fate is Fate.DIES:
            self.die()
        elif fate is Fate.STANDS_STILL:
            self._goes_on = asyncio.get_running_loop().create_future()
            self.stood_still.set()
        return self._goes_on

    def die(self) -> None:
        self.is_dead = True
        for writer in self.writers:
            writer._queue.clear()
        for transport in self._transports:
            transport.abort()
        for task, coroutine in self._tasks.items():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))
            task.cancel()
        self.died.set()

    async def end(self) -> None:
        """Before the loop ends: whoever stands still dies, and nothing of it is left to be waited for."""
        if self.stood_still.is_set() and not self._running.done():
            self.die()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


class Loop(asyncio.SelectorEventLoop):
    """In which processes can die."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(_made)

    def _make_socket_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = super()._make_socket_transport(*arguments, **options)  # type: ignore[misc]
        process = _current.get()
        if process is not None and options.get("server") is None:
            process.connect(transport)
        return transport

    def _asyncgen_firstiter_hook(self, generator: Any) -> None:
        """The loop ends what it knows of when it is closed, and the dead may not be."""
        if _current.get() is None:
            super()._asyncgen_firstiter_hook(generator)  # type: ignore[misc]


def _made(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> "asyncio.Task[Any]":
    process = _current.get()
    if process is None:
        return asyncio.Task(coroutine, loop=loop, **options)
    task = asyncio.Task(_mortal(coroutine, process), loop=loop, **options)
    process.adopt(task, coroutine)
    return task


async def _mortal(coroutine: Coroutine[Any, Any, Any], process: Process) -> Any:
    return await _Watched(coroutine, process)


class _Watched:
    """Runs a coroutine until its process is dead."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], process: Process) -> None:
        self._coroutine = coroutine
        self._process = process

    def __await__(self) -> Generator[Any, Any, Any]:
        process, step = self._process, self._coroutine.send
        given: Any = None
        while not process.is_dead:
            try:
                waited_for = step(given)
            except StopIteration as end:
                return end.value
            error = yield from self._instant()
            if process.is_dead:
                break
            if error is not None:  # cancelled while it stood still
                if waited_for is not None:
                    waited_for.cancel()
            else:
                try:
                    given, step = (yield waited_for), self._coroutine.send
                except BaseException as thrown:  # noqa: BLE001 - whatever is thrown in is for the coroutine
                    error = thrown
                error = (yield from self._instant()) or error
            if error is not None:
                given, step = error, self._coroutine.throw
        raise asyncio.CancelledError

    def _instant(self) -> Generator[Any, Any, BaseException | None]:
        """How it was cancelled meanwhile, if it stands still."""
        error = None
        goes_on = self._process.passes(self._coroutine)
        while goes_on is not None and not goes_on.done():
            try:
                yield from asyncio.shield(goes_on)
            except asyncio.CancelledError as cancelled:
                error = cancelled
                if self._process.is_dead:
                    break
        return error


def place_of(coroutine: Any) -> str:
    """Where a suspended coroutine stands: each function of ours with its line, from the outermost await to the innermost."""
    found: list[str] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and "site-packages" not in frame.f_code.co_filename:
            found.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return " > ".join(found)
