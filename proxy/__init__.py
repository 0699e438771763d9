"""The engine: one request in, one answer out. Knows no vendor.

Owns: matching, authentication, the call to admission, the upstream client, the relay, settling on every
exit, background workers, telemetry. Does not own: vendors (`routes`), money and rows (`metering`).
Invariants: nothing is forwarded without a durable reservation; every reservation is resolved once; a
vendor's bytes are not touched; no vendor key goes down and no gateway token goes up.
"""
