"""Lines of log: one per event, whole, in order, in few writes."""

import asyncio
import io
import json
import logging
import threading

import pytest

from automna_proxy.logs import REQUESTS, TURN_LINES_MAX, CanonicalLines, TurnHandler, configure_logging
from automna_proxy.settings import Settings


class CountingStream(io.StringIO):
    """Remembers how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream() -> CountingStream:
    return CountingStream()


@pytest.fixture
def log(stream: CountingStream) -> logging.Logger:
    logger = logging.getLogger("test of turns")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [TurnHandler(stream)]
    return logger


async def test_the_lines_of_one_turn_are_written_together_and_in_order(log, stream):
    for number in range(5):
        log.info("line %d", number)
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert stream.writes == 1
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(5)]


async def test_a_turn_that_says_too_much_is_written_before_it_ends(log, stream):
    for _ in range(TURN_LINES_MAX):
        log.info("again")
    assert len(stream.getvalue().splitlines()) == TURN_LINES_MAX


def test_where_no_loop_runs_each_line_is_written_at_once(log, stream):
    log.info("one")
    assert stream.getvalue() == "one\n"
    log.info("two")
    assert stream.getvalue() == "one\ntwo\n"


async def test_what_other_threads_log_is_written_at_once(log, stream):
    thread = threading.Thread(target=log.info, args=("from a thread",))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert stream.getvalue() == "from a thread\n"


async def test_the_end_of_the_process_loses_no_line(log, stream):
    log.info("last words")
    log.handlers[0].flush()
    assert stream.getvalue() == "last words\n"


@pytest.fixture
def configured():
    """What is configured in a test ends with it."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = root.handlers[:]
    try:
        yield configure_logging
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def record_at(
    created: float, message: str, *args: object, error: Exception | None = None
) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error is not None else None
    record = logging.LogRecord("some.where", logging.INFO, "file", 1, message, args, exc_info)
    record.created, record.msecs = created, float(int(created * 1000) % 1000)
    return record


def test_lines_for_people_are_the_librarys(configured):
    configured(Settings.from_env({}))
    ours = logging.getLogger().handlers[-1].formatter
    theirs = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for created in (
        1_795_176_000.0,
        1_795_176_000.25,
        1_795_176_001.999,
        1_795_176_000.5,
        1_795_179_661.0625,
    ):
        for what in (("100 % plain",), ("%d of %s", 3, "them")):
            assert ours.format(record_at(created, *what)) == theirs.format(record_at(created, *what))
        failed = {"message": "it failed", "error": ValueError("two\nlines")}
        assert ours.format(record_at(created, **failed)) == theirs.format(record_at(created, **failed))


def test_lines_for_machines_tell_when_and_how_bad(configured):
    configured(Settings.from_env({"LOG_FORMAT": "json"}))
    ours = logging.getLogger().handlers[-1].formatter
    at = logging.Formatter().formatTime(record_at(1_795_176_000.007, ""))
    canonical = record_at(1_795_176_000.007, '{"request":"req_1"}')
    canonical.name = REQUESTS
    expected = {"at": at, "level": "info", "logger": REQUESTS, "request": "req_1"}
    assert json.loads(ours.format(canonical)) == expected
    failed = json.loads(ours.format(record_at(1_795_176_000.007, "it %s", "failed", error=ValueError("so"))))
    assert (failed["at"], failed["message"], failed["error"]) == (at, "it failed", "ValueError: so")


def test_a_canonical_line_is_taken_apart_in_json_and_not_quoted(capsys, configured):
    configured(Settings.from_env({"LOG_FORMAT": "json"}))
    logging.getLogger(REQUESTS).info('{"request":"req_1","status":200}')
    logging.getLogger("other").warning('a "quoted" word')
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (lines[0]["request"], lines[0]["status"], "message" in lines[0]) == ("req_1", 200, False)
    assert lines[1]["message"] == 'a "quoted" word'


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("at_s", [1_795_176_000.0, 1_795_176_000.25, 1_795_176_001.999, 1_795_179_661.0625])
def test_a_canonical_line_is_what_its_record_would_say(configured, log_format, at_s):
    configured(Settings.from_env({"LOG_FORMAT": log_format}))
    formatter = logging.getLogger().handlers[-1].formatter
    record = record_at(at_s, '{"request":"req_1"}')
    record.name = REQUESTS
    assert formatter.canonical('{"request":"req_1"}', at_s) == formatter.format(record)


async def test_a_canonical_line_keeps_its_place_among_the_others(capsys, configured):
    configured(Settings.from_env({}))
    # pytest listens, too: without it, the line takes the short way
    logging.getLogger().handlers[:] = [
        one for one in logging.getLogger().handlers if type(one) is TurnHandler
    ]
    logging.getLogger("other").warning("before")
    CanonicalLines().say("request=req_1")
    logging.getLogger("other").warning("after")
    assert capsys.readouterr().err == ""
    await asyncio.sleep(0)
    said = [line.partition(" ")[2].partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["WARNING other: before", f"INFO    {REQUESTS}: request=req_1", "WARNING other: after"]


@pytest.mark.parametrize("place", ["", "automna_proxy", REQUESTS])
def test_who_listens_to_canonical_lines_gets_their_records(capsys, configured, place):
    configured(Settings.from_env({}))
    lines, heard = CanonicalLines(), []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append((record.name, record.levelname, record.getMessage()))

    logger, listener = logging.getLogger(place or None), Listener()
    logger.addHandler(listener)
    try:
        lines.say("request=req_1 100%")
    finally:
        logger.removeHandler(listener)
    assert heard == [(REQUESTS, "INFO", "request=req_1 100%")]
    assert capsys.readouterr().err.endswith(f" INFO    {REQUESTS}: request=req_1 100%\n")


def test_a_canonical_line_that_cannot_be_written_breaks_nothing(capsys, configured):
    configured(Settings.from_env({}))
    (handler,) = [one for one in logging.getLogger().handlers if type(one) is TurnHandler]
    handler.stream = io.StringIO()
    handler.stream.close()
    handler.say("request=req_1")
    assert "--- Logging error ---" in capsys.readouterr().err
