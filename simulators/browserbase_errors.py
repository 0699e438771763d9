"""What Browserbase refuses, and in which words. They name what is the whole account's, as the vendor's own do: that is
what the proxy must not pass on."""

from simulators.browserbase_behaviour import FOREIGN_SESSION, PLAN, PROJECT_ID
from simulators.vendor import RefusedError

RATE_WINDOW_S = 60


def unauthorized() -> RefusedError:
    return RefusedError(401, "Unauthorized")


def not_found(kind: str, object_id: str) -> RefusedError:
    return RefusedError(404, f"{kind} {object_id} not found in project {PROJECT_ID}")


def no_route(method: str, path: str) -> RefusedError:
    return RefusedError(404, f"Route {method}:{path} not found")


def invalid(message: str) -> RefusedError:
    return RefusedError(400, message)


def foreign_project(project_id: str) -> RefusedError:
    return RefusedError(403, f"Project {project_id} is not {PROJECT_ID}, to which this API key belongs")


def taken(name: str) -> RefusedError:
    """That it is this status is a guess; that it is refused is documented."""
    return RefusedError(409, f"A context named {name!r} exists already in project {PROJECT_ID}")


def ended(session_id: str, status: str) -> RefusedError:
    """That it is this status is a guess."""
    return RefusedError(410, f"Session {session_id} of project {PROJECT_ID} is {status}, and not running")


def too_many_sessions(limit: int, running: int, headers: tuple[tuple[str, str], ...]) -> RefusedError:
    message = (
        f"You've exceeded your max concurrent sessions limit (limit {limit}, currently {running}). "
        f"End session {FOREIGN_SESSION}, or upgrade from the {PLAN} of project {PROJECT_ID}."
    )
    return RefusedError(429, message, headers=headers)


def too_many_creates(limit: int, headers: tuple[tuple[str, str], ...]) -> RefusedError:
    message = (
        f"You've exceeded your session creation limit ({limit} in {RATE_WINDOW_S} seconds) "
        f"on the {PLAN} of project {PROJECT_ID}."
    )
    return RefusedError(429, message, headers=headers)
