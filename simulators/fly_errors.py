"""What Fly refuses, in its words where they are known, and the statuses that clients tell them apart by."""

import orjson

from simulators.fly_habits import Shortage
from simulators.vendor import RefusedError


def unauthorized() -> RefusedError:
    return RefusedError(401, "unauthorized")


def no_route(path: str) -> RefusedError:
    return RefusedError(404, f"no route for {path}")


def not_found(kind: str) -> RefusedError:
    return RefusedError(404, f"{kind} not found")


def invalid(message: str) -> RefusedError:
    return RefusedError(400, f"invalid_argument: {message}")


def unprocessable(message: str) -> RefusedError:
    return RefusedError(422, message)


def precondition(message: str) -> RefusedError:
    return RefusedError(412, f"failed_precondition: {message}")


def foreign_app(app_name: str) -> RefusedError:
    """It exists, and is another organization's."""
    return RefusedError(403, f"not authorized to access app {app_name}")


def name_taken() -> RefusedError:
    """By another organization."""
    return RefusedError(422, "Name is not available", error_type="name_taken")


def name_taken_here() -> RefusedError:
    """By an app of one's own."""
    return RefusedError(422, "Validation failed: Name has already been taken")


def machine_name_taken(machine_id: str, name: str) -> RefusedError:
    words = f'unique machine name violation, machine ID {machine_id} already exists with name "{name}"'
    return RefusedError(409, f"already_exists: {words}")


def concurrent_update(machine_id: str) -> RefusedError:
    return RefusedError(409, f"aborted: concurrent update of machine {machine_id}")


def ip_allocated(status: int, kind: str) -> RefusedError:
    """The words are a guess."""
    return RefusedError(status, f"{kind} address already allocated")


def leased(machine_id: str, owner: str, expires_at: str) -> RefusedError:
    """In a body of another shape than every other error; its `code` is a guess."""
    words = f"machine ID {machine_id} lease currently held by {owner}, expires at {expires_at}"
    return RefusedError(
        409, words, body=orjson.dumps({"status": "error", "message": words, "code": "conflict"})
    )


def not_leased() -> RefusedError:
    """That a nonce of no lease is refused so is a guess."""
    return RefusedError(409, "lease not found")


def not_reached(wished: str, state: str) -> RefusedError:
    return RefusedError(408, f"machine failed to reach desired state, {wished}, currently {state}")


def no_room(shortage: Shortage, place: str) -> RefusedError:
    """The status' words are the vendor's, as are those that clients look for in the text."""
    match shortage:
        case Shortage.REGION:
            words = f"insufficient resources available in {place} to fulfill request"
            return RefusedError(422, words, error_type="insufficient_capacity")
        case Shortage.ABORTED:
            return RefusedError(409, f"aborted: no capacity available in {place}")
        case Shortage.VOLUME:
            words = f"insufficient resources to create new machine with existing volume on {place}"
            return RefusedError(412, words, error_type="volume_placement_capacity")
        case Shortage.HOST:
            return RefusedError(
                409, f"aborted: could not reserve resource for machine: insufficient memory on {place}"
            )


def limited(body: bytes, retry_after_s: float | None) -> RefusedError:
    headers = () if retry_after_s is None else (("Retry-After", f"{retry_after_s:g}"),)
    return RefusedError(429, "rate limit exceeded", body=body, headers=headers)
