"""The engine's bounds, as values: what the settings say, without where they come from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Every wait and size of one exchange, and where its client reaches us. Meanings: the settings of the same names."""

    body_bytes_max: int
    body_timeout_s: float
    connect_timeout_s: float
    first_byte_timeout_s: float
    idle_timeout_s: float
    answer_timeout_s: float
    pool_idle_s: float
    stream_silence_s: float
    drain_after_client_left_s: float
    drains_max: int
    settle_wait_s: float
    checkpoint_s: float
    estimate_bytes_per_token: int
    output_slice_tokens: int
    output_bytes_per_token: int
    sockets_per_user: int
    sockets_max: int
    public_url: str
    client_stall_timeout_s: float
