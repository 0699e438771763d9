"""Background tasks: what is kept going begins anew after a failure, and ends when it is to."""

import asyncio
import logging

from metering.tasks import keep, stop


async def test_what_is_kept_begins_anew_after_each_failure_and_says_so(caplog):
    begun = []

    async def looking():
        begun.append(len(begun))
        if len(begun) < 3:
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        await keep(looking, name="looks", pause_s=0.0)
    assert begun == [0, 1, 2]
    said = [(record.getMessage(), record.exc_info[0]) for record in caplog.records]
    assert said == [("background task looks failed, and begins anew in 0 s", ZeroDivisionError)] * 2


async def test_what_is_kept_ends_when_it_is_stopped_at_work_and_in_its_pause(caplog):
    is_at_work, has_left = asyncio.Event(), []

    async def looking():
        is_at_work.set()
        try:
            await asyncio.Event().wait()
        finally:
            has_left.append(True)

    task = keep(looking, name="looks")
    await is_at_work.wait()
    await stop(task)
    assert task.cancelled()
    assert has_left == [True]
    assert caplog.records == []

    async def failing():
        is_at_work.set()
        raise ZeroDivisionError

    is_at_work.clear()
    pausing = keep(failing, name="looks", pause_s=3600.0)
    await is_at_work.wait()
    await stop(pausing)
    assert pausing.cancelled()
