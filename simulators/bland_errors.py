"""The refusals of Bland, in its words where they are known. Several name what belongs to the whole account."""

from simulators.bland_behaviour import FOREIGN_NUMBER, ORGANIZATION_ID, PLAN
from simulators.vendor import RefusedError


def unauthorized() -> RefusedError:
    return RefusedError(401, "Unauthorized", error_type="AUTH_FAILURE")


def invalid(*errors: str) -> RefusedError:
    return RefusedError(400, "Invalid parameters", errors=errors)


def not_found(kind: str) -> RefusedError:
    return RefusedError(404, f"{kind} not found")


def not_found_in_envelope(kind: str) -> RefusedError:
    """As the newer endpoints say it."""
    code = f"{kind.upper().replace(' ', '_')}_NOT_FOUND"
    return RefusedError(404, f"{kind} not found", error_type=code, in_envelope=True)


def not_active() -> RefusedError:
    return RefusedError(400, "Call is not active", error_type="INVALID_CALL_STATUS", in_envelope=True)


def nothing_to_stop() -> RefusedError:
    """That a call which is over is refused with 400 is a guess; the words are the vendor's."""
    return RefusedError(400, "SID not found for the given c_id.")


def insufficient_balance(balance: object) -> RefusedError:
    """The words are the vendor's; that the balance is told is a guess, to be prepared."""
    return RefusedError(402, "Insufficient balance.", errors=(f"{ORGANIZATION_ID} has {balance} credits",))


def same_number(number: str) -> RefusedError:
    return RefusedError(429, f"Number {number} was called within the last 10 seconds")


def rate_limited(used: int, limit: int, span: str) -> RefusedError:
    told = f"{ORGANIZATION_ID} has made {used} of {limit} calls {span} on the {PLAN}"
    return RefusedError(429, "Rate limit exceeded", errors=(told,))


def blacklisted(number: str) -> RefusedError:
    told = f"Blocked by {ORGANIZATION_ID}, as {FOREIGN_NUMBER} is"
    return RefusedError(429, f"Number {number} is blacklisted", errors=(told,))


def key_not_valid() -> RefusedError:
    """That a wrong `encrypted_key` is refused with 400 is a guess."""
    return RefusedError(400, "Invalid encrypted_key")
