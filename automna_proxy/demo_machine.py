"""The demo's machine: a user's own at the simulated Fly, from wish to ready, used as its agent would, and gone again."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from automna_proxy.demo_json import object_from
from automna_proxy.demo_page import Page
from automna_proxy.demo_scenes import SONNET
from automna_proxy.demo_stage import OK, Stage, StageError
from simulators.fly import TOKEN, FlySimulator

SHOWN = ("ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "BROWSERBASE_CONTEXT_ID", "AGENTMAIL_INBOX_ID")
"""Of its environment."""
UNAUTHORIZED = 401
OLD_TOKEN_S, REVOKED_S, LOOK_S = 15.0, 10.0, 0.5
"""A replaced token holds for a moment after the machine has the new one; one that is revoked is refused within a second,
where the machine is not too busy. Each look is one of the user's 60 reports a minute, as those of the scenes were."""
SHOWN_TOKEN_CHARS = 10
ASKED = "Are you running on a machine of my own?"


@dataclass(frozen=True, slots=True)
class Promise:
    """What is to hold, and whether it does."""

    claim: str
    holds: bool
    found: object = ""


class OwnMachine:
    """The scene. `command` shows and runs an operator's command, and returns its output."""

    def __init__(self, page: Page, stage: Stage, user: str, command: Callable[..., str]) -> None:
        self._page = page
        self._stage = stage
        self._user = user
        self._command = command

    def play(self) -> list[Promise]:
        """Raises StageError when it cannot go on."""
        promises = [self._made(), self._used(), self._rotated(), self._gone()]
        return [one for some in promises for one in some]

    def _made(self) -> list[Promise]:
        self._command("machine", "provision", self._user)
        fly, env = self._fly, self._env
        (app,), (machine,) = fly.apps, fly.machines
        self._page.fact("fly", f"app {app.name}, alone in network {app.network}")
        self._page.fact("fly", f"machine {machine.id} in {machine.region}, volume {fly.volumes[0].id}")
        for name in SHOWN:
            self._page.fact("machine", f"{name}={env.get(name, '')}")
        self._page.fact("machine", f"{TOKEN}={env[TOKEN][:SHOWN_TOKEN_CHARS]}...")
        counts = {"apps": len(fly.apps), "addresses": len(app.addresses), "volumes": len(fly.volumes)}
        return [
            Promise(
                f"{self._user} has one app, two addresses, one volume and one machine, which runs",
                counts == {"apps": 1, "addresses": 2, "volumes": 1} and machine.running is not None,
                counts,
            ),
        ]

    def _used(self) -> list[Promise]:
        """As the agent in it would, with nothing but its environment; and as the user's browser would."""
        env = self._env
        self._page.fact("agent", ASKED)
        body = {
            "model": SONNET,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": ASKED}],
        }
        base = urlsplit(env["ANTHROPIC_BASE_URL"])
        answer = object_from(
            f"{base.scheme}://{base.netloc}",
            ("POST", f"{base.path}/v1/messages", json.dumps(body).encode()),
            {"x-api-key": env["ANTHROPIC_API_KEY"], "content-type": "application/json"},
            status=OK,
            failed=lambda why: StageError(f"the machine's agent: {why}"),
        )
        self._page.fact("claude", str(answer["content"][0]["text"]))
        self._page.paste('$ curl $URL/api/user/gateway -H "authorization: Bearer $TOKEN"')
        gateway = self._own("/api/user/gateway", env[TOKEN])
        self._page.fact("gateway", f"{gateway['url']} until {gateway['expires_at']}")
        return [
            Promise(
                "the machine's agent reached its model through the proxy, with its own token",
                answer["usage"]["output_tokens"] > 0,
            ),
            Promise(
                "its address is handed out with a ticket, not with its token", env[TOKEN] not in str(gateway)
            ),
        ]

    def _rotated(self) -> list[Promise]:
        before = self._env[TOKEN]
        self._command("machine", "rotate", self._user)
        after = self._env[TOKEN]
        statuses = [self._status_in(OLD_TOKEN_S, before), self._status_in(0.0, after)]
        return [
            Promise(
                "its gateway token was replaced: the new one is in the machine, the old one is refused",
                before != after and statuses == [UNAUTHORIZED, OK],
                statuses,
            )
        ]

    def _gone(self) -> list[Promise]:
        token = self._env[TOKEN]
        self._command("machine", "deprovision", self._user, "--yes")
        fly = self._fly
        left = [*fly.apps, *fly.machines, *fly.volumes]
        return [
            Promise(
                "nothing is left of it but the ledger, and its token is refused",
                not left and self._status_in(REVOKED_S, token) == UNAUTHORIZED,
                left,
            )
        ]

    def _status_in(self, seconds: float, token: str) -> int:
        """Of a request with that token: once it is refused, or after so long."""
        until_s = time.monotonic() + seconds
        while True:
            status = self._stage.status_of("/api/user/limits", token)
            if status != OK or time.monotonic() >= until_s:
                return status
            time.sleep(LOOK_S)

    @property
    def _fly(self) -> FlySimulator:
        fly = self._stage.vendors["fly"]
        assert isinstance(fly, FlySimulator)
        return fly

    @property
    def _env(self) -> Mapping[str, str]:
        """Of what runs in the machine. Raises StageError."""
        running = [one.running for one in self._fly.machines if one.running is not None]
        if len(running) != 1:
            raise StageError(f"{len(running)} machines run, expected one")
        return running[0].env

    def _own(self, path: str, token: str) -> Mapping[str, Any]:
        return object_from(
            self._stage.url,
            ("GET", path, None),
            {"authorization": f"Bearer {token}"},
            status=OK,
            failed=lambda why: StageError(f"{path}: {why}"),
        )
