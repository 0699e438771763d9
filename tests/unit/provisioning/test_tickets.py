"""Tickets to machines: what they say, and that a machine knows them by its own key."""

import base64
import hashlib
import hmac
import json

from metering.users import Directory
from provisioning.machines import TICKET_VALID_S, Machines
from tests.support.ledger import NOW_MS, open_bench


def _decoded(part):
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


async def test_a_ticket_says_whose_it_is_for_which_app_and_for_how_long(tmp_path):
    async with open_bench(tmp_path) as bench:
        machines = Machines(bench.store, bench.clock, app_prefix="u-", gateway_url="https://{app}.fly.dev")
        keys = {}
        for user in ("ada", "bob"):
            await Directory(bench.store, bench.clock).add_user(user, plan="pro")
            machine = await machines.provision(user, actor="test")
            text, until_ms = await machines.ticket(machine)
            said, _, mac = text.rpartition(".")
            head, claims = (json.loads(_decoded(part)) for part in said.split("."))
            keys[user] = await machines.ticket_key(machine.instance)
            assert head == {"alg": "HS256", "typ": "JWT"}
            assert claims.pop("jti").startswith("tkt_")
            now_s = NOW_MS // 1000
            assert claims == {
                "sub": user,
                "aud": machine.instance.app_name,
                "iat": now_s,
                "exp": now_s + TICKET_VALID_S,
            }
            assert until_ms == (now_s + TICKET_VALID_S) * 1000
            expected = hmac.digest(bytes.fromhex(keys[user]), said.encode(), hashlib.sha256)
            assert _decoded(mac) == expected
        assert keys["ada"] != keys["bob"]
