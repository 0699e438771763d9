"""Speed, measured: the proxy beside a plain nginx, in the same run, on one pinned core, with everything booked.

Owns the measurements of docs/benchmarks.md; `peers` are other gateways beside it. Imports any room; nothing imports it.
Invariant: a measured run counts only when the ledger has an entry for every answer the load generator got.
"""
