"""Numbers of a query that are bounded, and the first value of a parameter."""

import pytest

from metering.errors import Reason, Refused
from proxy.query import at_most, value_of

MOST = {"expiresIn": 60}


@pytest.mark.parametrize(
    ("query", "bounded"),
    [
        (b"", b"expiresIn=60"),
        (b"expiresIn=30", b"expiresIn=30"),
        (b"expiresIn=61", b"expiresIn=60"),
        (b"a=1&expiresIn=9999&b=%20", b"a=1&b=%20&expiresIn=60"),
        (b"expires%49n=0&a", b"a&expiresIn=0"),
    ],
)
def test_a_number_is_no_more_than_it_may_be_and_what_stands_beside_it_stays(query, bounded):
    assert at_most(MOST, query) == bounded


@pytest.mark.parametrize(
    "query",
    [b"expiresIn=", b"expiresIn=x", b"expiresIn=-1", b"expiresIn=" + b"9" * 19, b"expiresIn=1&expiresIn=2"],
)
def test_what_is_no_number_or_stands_there_twice_is_refused(query):
    with pytest.raises(Refused) as refused:
        at_most(MOST, query)
    assert refused.value.reason is Reason.BAD_REQUEST


def test_the_first_value_counts_and_an_empty_one_is_one():
    assert value_of("a", b"b=1&a=x%20y&a=2") == "x y"
    assert value_of("a", b"a=") == ""
    assert value_of("a", b"b=1") is None
