"""The refusals of AgentMail, in its words. Several name what belongs to the whole account, as the vendor's may."""

from collections.abc import Iterable

from simulators.agentmail_behaviour import FOREIGN_INBOX, ORGANIZATION_ID, PLAN
from simulators.vendor import RefusedError


def missing_authorization() -> RefusedError:
    fix = "Send your API key in the Authorization: Bearer <api_key> header."
    return RefusedError(401, "Unauthorized", error_type="missing_authorization", fix=fix)


def unauthorized() -> RefusedError:
    return RefusedError(401, "Unauthorized", error_type="unauthorized", fix="Send a valid API key.")


def unknown_api_key() -> RefusedError:
    fix = "Confirm you copied the full value (keys start with am_) and that it was not revoked."
    return RefusedError(401, "Unauthorized", error_type="unknown_api_key", fix=fix)


def invalid(message: str, *path: str | int) -> RefusedError:
    """400, with the `errors` that no other status has."""
    error = {"path": list(path), "message": message}
    return RefusedError(400, message, fix="Fix the fields that `errors` names.", errors=(error,))


def not_found(kind: str, inboxes: Iterable[str] = ()) -> RefusedError:
    """The fix names the organization and its inboxes, whoever they belong to."""
    known = ", ".join([FOREIGN_INBOX, *inboxes])
    fix = f"Verify the ID. Organization {ORGANIZATION_ID} has the inboxes: {known}."
    return RefusedError(404, f"{kind} not found", fix=fix)


def unprocessable(message: str) -> RefusedError:
    return RefusedError(422, message, fix="Adjust the request as the message says.")


def conflict(message: str) -> RefusedError:
    fix = f"Wait and retry the original, or use another key; it is known to organization {ORGANIZATION_ID}."
    return RefusedError(409, message, fix=fix)


def too_large() -> RefusedError:
    return RefusedError(
        413, "Request is too large", fix="Keep the request, attachments included, below 6 MB."
    )


def taken(address: str, pod_id: str) -> RefusedError:
    message = f"{address} is taken by pod {pod_id} of organization {ORGANIZATION_ID}"
    return RefusedError(403, message, error_type="resource_taken", fix="Choose a different value.")


def limit_exceeded(used: int, limit: int) -> RefusedError:
    message = f"Inbox limit exceeded: {used} of {limit} inboxes on the {PLAN}"
    fix = f"Delete an inbox, {FOREIGN_INBOX} say, or upgrade organization {ORGANIZATION_ID}."
    return RefusedError(403, message, error_type="limit_exceeded", fix=fix)


def daily_limit(used: int, limit: int) -> RefusedError:
    message = f"Organization {ORGANIZATION_ID} has sent {used} of {limit} emails today"
    fix = f"Honor the Retry-After header, or upgrade from the {PLAN}."
    return RefusedError(429, message, fix=fix, headers=(("Retry-After", "1"),))


def rejected(address: str) -> RefusedError:
    message = f"{address} is on the block list of organization {ORGANIZATION_ID}"
    return RefusedError(403, message, error_type="message_rejected", fix="Remove blocked recipients.")


def forbidden(message: str) -> RefusedError:
    fix = f"Use a key of organization {ORGANIZATION_ID} with a broader scope."
    return RefusedError(403, message, error_type="forbidden", fix=fix)


def cannot_delete(message: str) -> RefusedError:
    return RefusedError(403, message, error_type="cannot_delete", fix="Delete what depends on it first.")


def domain_not_verified(domain: str) -> RefusedError:
    message = f"Domain {domain} is not verified"
    fix = f"Verify it in organization {ORGANIZATION_ID}."
    return RefusedError(403, message, error_type="domain_not_verified", fix=fix)
