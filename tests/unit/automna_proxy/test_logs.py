"""Lines of log: one per event, whole, in order, in few writes."""

import asyncio
import io
import json
import logging
import threading

import pytest

from automna_proxy.logs import REQUESTS, TURN_LINES_MAX, TurnHandler, configure_logging
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


def test_a_canonical_line_is_taken_apart_in_json_and_not_quoted(capsys):
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = root.handlers[:]
    try:
        configure_logging(Settings.from_env({"LOG_FORMAT": "json"}))
        logging.getLogger(REQUESTS).info('{"request":"req_1","status":200}')
        logging.getLogger("other").warning('a "quoted" word')
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert (lines[0]["request"], lines[0]["status"], "message" in lines[0]) == ("req_1", 200, False)
    assert lines[1]["message"] == 'a "quoted" word'
