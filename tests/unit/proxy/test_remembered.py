"""What is remembered of gateway tokens: so many, the newest; and whom a change is about."""

import pytest

from metering.users import Credential
from proxy.remembered import Remembered


def credential(token_id, user_id="usr_1", *ancestors):
    return Credential(token_id, user_id, "free", "active", None, None, ancestors)


@pytest.fixture
def remembered():
    """Two tokens of one user, the second with a child that has a ticket, too; and another user's."""
    found = Remembered(10)
    found.put(b"first", credential("tok_1"))
    found.put(b"second", credential("tok_2"))
    found.put(b"child", credential("tok_3", "usr_1", "tok_2"))
    found.put("tok_3", credential("tok_3", "usr_1", "tok_2"))
    found.put(b"other", credential("tok_4", "usr_2"))
    return found


KEYS = {b"first", b"second", b"child", "tok_3", b"other"}


def known(remembered):
    return {key for key in KEYS if remembered.peek(key) is not None}


@pytest.mark.parametrize(
    ("changed", "forgotten"),
    [
        ([("token", "tok_1")], {b"first"}),
        ([("token", "tok_2")], {b"second", b"child", "tok_3"}),
        ([("token", "tok_3")], {b"child", "tok_3"}),
        ([("user", "usr_1")], KEYS - {b"other"}),
        ([("user", "usr_2"), ("token", "tok_4"), ("token", "tok_1")], {b"other", b"first"}),
        ([("user", "tok_1"), ("token", "usr_1"), ("object", "tok_1"), ("user", "usr_9")], set()),
        ([], set()),
    ],
)
def test_a_change_forgets_whom_it_is_about_and_nobody_else(remembered, changed, forgotten):
    remembered.forget(changed)
    assert known(remembered) == KEYS - forgotten
    assert len(remembered) == len(KEYS - forgotten)


def test_of_what_is_forgotten_nothing_is_left(remembered):
    assert remembered.subjects == 4 + 2
    remembered.forget([("user", "usr_1")])
    assert remembered.subjects == 2
    remembered.forget([("token", "tok_4")])
    assert remembered.subjects == len(remembered) == 0


def test_the_one_that_was_asked_for_longest_ago_is_forgotten_first():
    remembered = Remembered(2)
    remembered.put(b"1", credential("tok_1", "usr_1"))
    remembered.put(b"2", credential("tok_2", "usr_2"))
    remembered.get(b"1")
    remembered.peek(b"2")
    remembered.put(b"3", credential("tok_3", "usr_3"))
    assert [remembered.peek(key) is not None for key in (b"1", b"2", b"3")] == [True, False, True]
    assert remembered.subjects == 4


def test_what_is_put_again_takes_the_place_of_what_was(remembered):
    remembered.put(b"first", credential("tok_1", "usr_2"))
    remembered.forget([("user", "usr_1")])
    assert known(remembered) == {b"first", b"other"}
    remembered.forget([("user", "usr_2")])
    assert remembered.subjects == 0


def test_all_is_forgotten_at_once(remembered):
    remembered.clear()
    assert known(remembered) == set()
    assert remembered.subjects == 0
