"""What Browserbase tells the owner of the account, and nobody else: every answer bears `ACCOUNT_MARK`."""

from collections.abc import Mapping
from typing import Any

from simulators import browserbase_errors as errors
from simulators.browserbase_behaviour import ACCOUNT_MARK, OWNER_ID, PROJECT_ID, ReportedUsage
from simulators.browserbase_project import Project
from simulators.browserbase_state import shown
from simulators.browserbase_turn import CREATED, Call, Given, Handler, given

WHOLE = ("secrets", "functions", "webhooks", "certificates", "agents")
"""Of each of these everything is the whole project's."""
PATHS = ("", "/{a}", "/{a}/{b}", "/{a}/{b}/{c}")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
LIMIT = 20


class Account:
    def __init__(self, project: Project) -> None:
        self._project = project
        self._created_ms = project.now_ms()
        self.changes: list[str] = []
        """What requests did to what is the whole account's: methods and paths, in order."""
        self.routes: Mapping[str, Handler] = {
            "GET /projects": lambda _: given([self._shown()]),
            "GET /projects/{project}": self._get,
            "GET /projects/{project}/usage": self._usage,
            **{
                f"{method} /{name}{path}": self._whole
                for name in WHOLE
                for path in PATHS
                for method in METHODS
            },
        }

    def _shown(self) -> dict[str, Any]:
        at, plan = shown(self._created_ms), self._project.plan
        return {
            "id": PROJECT_ID,
            "name": ACCOUNT_MARK,
            "ownerId": OWNER_ID,
            "concurrency": plan.concurrent_sessions or 0,
            "defaultTimeout": plan.timeout_s,
            "createdAt": at,
            "updatedAt": at,
        }

    def _checked(self, call: Call) -> None:
        if call.ids["project"] != PROJECT_ID:
            raise errors.not_found("Project", call.ids["project"])

    def _get(self, call: Call) -> Given:
        self._checked(call)
        return given(self._shown())

    def _usage(self, call: Call) -> Given:
        """Of all tenants together; the mark stands beside what the vendor says."""
        self._checked(call)
        billed = self._project.billed.values()
        minutes = sum(-(-each.seconds // 60) for each in billed)
        proxied = sum(each.proxy_bytes for each in billed)
        return given({"browserMinutes": minutes, "proxyBytes": proxied, "name": ACCOUNT_MARK})

    def _whole(self, call: Call) -> Given:
        request = call.request
        if request.method != "GET":
            self.changes.append(f"{request.method} {request.path}")
        if request.method == "DELETE":
            return Given()
        at = shown(self._created_ms)
        one = {
            "id": self._project.new_id(),
            "projectId": PROJECT_ID,
            "name": ACCOUNT_MARK,
            "createdAt": at,
            "updatedAt": at,
        }
        if request.method == "POST":
            if request.path == "/v1/agents/runs":
                call.usage, call.object_id = ReportedUsage(agent_runs=1), str(one["id"])
            return given(one, CREATED)
        if call.ids or request.method != "GET":
            return given(one)
        if request.path == "/v1/certificates":
            return given([one])
        return given({"data": [one], "limit": LIMIT, "nextCursor": None})
