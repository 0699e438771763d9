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

    with caplog.at_level(logging.WARNING):
        await keep(looking, name="looks", pause_s=0.0)
    assert begun == [0, 1, 2]
    said = [(record.getMessage(), record.exc_info and record.exc_info[0]) for record in caplog.records]
    failed, anew = "background task looks failed", "background task looks begins anew in 0 s"
    assert said == [(failed, ZeroDivisionError), (anew, None)] * 2


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


async def test_what_is_kept_ends_when_it_is_stopped_and_fails_in_its_end(caplog):
    """A stop waits for it; begun anew, nobody would stop it again."""
    begun, is_at_work = [], asyncio.Event()

    async def leaving():
        begun.append(True)
        is_at_work.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    async def looking():
        async with asyncio.TaskGroup() as looks:
            looks.create_task(leaving())

    task = keep(looking, name="looks", pause_s=0.0)
    await is_at_work.wait()
    async with asyncio.timeout(60):
        await stop(task)
    assert begun == [True]
    assert [record.getMessage() for record in caplog.records] == ["background task looks failed"]


async def test_what_is_kept_begins_anew_where_a_group_of_tasks_in_it_has_failed():
    begun = []

    async def failing():
        if len(begun) < 3:
            raise ZeroDivisionError

    async def looking():
        begun.append(True)
        async with asyncio.TaskGroup() as looks:
            looks.create_task(failing())

    await keep(looking, name="looks", pause_s=0.0)
    assert len(begun) == 3
