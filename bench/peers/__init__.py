"""Gateways of the field beside ours: the same vendor, the same core, the same load (`make bench PEERS=1`).

Owns what is installed of them (locks), how each is started and asked, and the runs. Does not own the measurements.
Invariant: whatever a peer does, ours are measured all the same; what failed is said in the table.
"""
