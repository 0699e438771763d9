"""Why a machine did not come: a code that says nothing of our insides, and whether trying again helps."""

import enum


class Code(enum.StrEnum):
    """What users and operators are told. Stable: programs compare it."""

    PROVIDER_UNAVAILABLE = "provider_unavailable"
    """A vendor did not answer, failed, or asked us to wait."""
    PROVIDER_REFUSED = "provider_refused"
    """A vendor refused what we asked for: ours to mend."""
    PROVIDER_UNAUTHORIZED = "provider_unauthorized"
    """A vendor refused our key: the operator's to mend."""
    NO_CAPACITY = "no_capacity"
    """There was no room for the machine, in none of the regions."""
    NAME_TAKEN = "name_taken"
    """Every name that the app may have is somebody else's."""
    NOT_OURS = "not_ours"
    """Something exists under the user's name that is not the user's."""
    MACHINE_FAILED = "machine_failed"
    """It was made and ended by itself, more than once."""
    START_TIMEOUT = "start_timeout"
    GATEWAY_TIMEOUT = "gateway_timeout"
    """It runs, and what runs in it does not answer."""
    MAIL_REFUSED = "mail_refused"
    BROWSER_REFUSED = "browser_refused"
    NOT_CONFIGURED = "not_configured"
    """The template needs a setting that is not set."""
    INTERNAL = "internal"


class ProvisioningError(Exception):
    """A step did not come to its end. `detail` is for the operator's log, and may quote a vendor."""

    is_retryable = False

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class AgainError(ProvisioningError):
    """It may go better later: after `after_s` seconds if that is known. What was made is kept."""

    is_retryable = True

    def __init__(self, code: Code, detail: str, *, after_s: float | None = None) -> None:
        super().__init__(code, detail)
        self.after_s = after_s


class WaitingError(Exception):
    """Nothing is wrong: what a step waits for is not there yet. To be looked at again in so many seconds."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"not there yet; again in {after_s:g} s")
        self.after_s = after_s


class FatalError(ProvisioningError):
    """Trying the same again is of no use. `helps_later`: it may be, when somebody asks for it anew."""

    def __init__(self, code: Code, detail: str, *, helps_later: bool = False) -> None:
        super().__init__(code, detail)
        self.is_retryable = helps_later


class SupersededError(Exception):
    """Another worker has the instance, or another thing is wished of it now: what was begun is left as it stands."""
