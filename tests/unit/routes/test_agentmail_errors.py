"""What AgentMail's dialect says of limits."""

import pytest

from metering.rate_state import RateState
from routes.agentmail_errors import AgentMailDialect
from tests.support.limits import standing

NOW_MS = 1_795_176_000_000


@pytest.mark.parametrize(("remaining", "resets"), [(7, None), (1, None), (0, b"1795176031")])
def test_the_minutes_end_is_named_only_where_nothing_is_left_of_it(remaining: int, resets: bytes | None):
    requests = RateState(True, 60, remaining, NOW_MS + 30_500, 0.0)
    headers = dict(AgentMailDialect().limit_headers(standing(requests=requests), NOW_MS))
    assert headers[b"x-ratelimit-remaining"] == b"%d" % remaining
    assert headers.get(b"x-ratelimit-reset") == resets
