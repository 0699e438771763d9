"""How the simulated Fly takes its time, where it has no room, how often it may be asked, and what of it is not certain."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

FAILING_IMAGE = "ends-failed"
"""A machine whose image has this in its name ends `failed`."""
STALLING_IMAGE = "never-starts"
"""A machine whose image has this in its name never leaves `starting`."""


class Shortage(enum.StrEnum):
    """What there is no room for in a region or on a host, and so which words it is refused with."""

    REGION = "region"
    """422 `insufficient_capacity`."""
    ABORTED = "aborted"
    """409 `aborted: no capacity`: the same, in older words."""
    VOLUME = "volume"
    """412 `volume_placement_capacity`: for machines with a volume there, and (of a region) for volumes."""
    HOST = "host"
    """409 `could not reserve resource`."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How often one action may be asked for on one machine or app, by the second and at once; and deletions of apps.
    From the vendor's documentation."""

    per_second: float = 1.0
    burst: int = 3
    machine_gets_per_second: float = 5.0
    machine_gets_burst: int = 10
    app_deletes_per_minute: int = 100


@dataclass(frozen=True, slots=True)
class Habits:
    """Seconds are of the simulator's clock.

    `boot_s`: from a new machine's creation until `started`, half of it `created`; `start_s`: that of one which ran
    before; `update_s`: from an update until it runs again; `gateway_s`: from `started` until what runs in it answers.
    `app_delete_s`: how long a deleted app is still there. `org_list_lag_s`: how long a new machine or volume is missing
    from the lists of the organization.

    `shortages`: by region or by host (the `zone` of a volume). `rates`: None, no limit; `limited_body` and
    `limited_retry_after_s` are what a 429 says, which nobody has documented. `repeated_ip`: the status when an app has
    an address of that type already; 200 gives another. `tells_booleans`: autostop is answered as a boolean for off and
    stop. `refuses_stale_nonce`: a lease's nonce is refused where no lease is, which is a guess.
    """

    boot_s: float = 2.0
    start_s: float = 0.5
    stop_s: float = 0.5
    update_s: float = 2.0
    destroy_s: float = 0.5
    gateway_s: float = 1.0
    app_delete_s: float = 0.0
    org_list_lag_s: float = 0.0
    shortages: Mapping[str, Shortage] = field(default_factory=dict)
    hosts_per_region: int = 2
    rates: Rates | None = Rates()
    limited_body: bytes = b'{"error":"rate limit exceeded","status":"unknown"}'
    limited_retry_after_s: float | None = None
    repeated_ip: int = 422
    tells_booleans: bool = True
    refuses_stale_nonce: bool = True
