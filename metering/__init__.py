"""What was used, what it costs, who may: usage, prices, plans, limits, the ledger and its store.

Owns: every count, every nano-USD, every row. Does not own: HTTP, vendors' wire formats, processes.
Invariants: money is an integer; usage buckets are disjoint; `spent + held <= allowance` holds for every
account at the moment a reservation is granted; a reservation is resolved once; entries are only appended.
"""
