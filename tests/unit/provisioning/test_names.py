"""What a user's things are called: the same always, of nobody else, and within what Fly takes."""

import re

from hypothesis import given
from hypothesis import strategies as st

from provisioning import names

PREFIX = "automna-u-"
FLY_NAME = re.compile(r"[a-z0-9-]{1,62}")


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_users_never_share_a_name(one, other):
    mine, theirs = list(names.app_names(PREFIX, one)), list(names.app_names(PREFIX, other))
    assert len(set(mine)) == names.SALTS_MAX
    assert all(FLY_NAME.fullmatch(name) for name in mine)
    assert mine == list(names.app_names(PREFIX, one))
    if one != other:
        assert not set(mine) & set(theirs)
        assert names.user_hash(one) != names.user_hash(other)


def test_the_case_of_an_id_counts():
    assert next(names.app_names(PREFIX, "user_2aB")) != next(names.app_names(PREFIX, "user_2Ab"))


def test_a_volumes_name_is_one_that_fly_takes():
    assert re.fullmatch(r"[a-z0-9_]{1,30}", names.volume(12))
