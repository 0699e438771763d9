"""An agent's machine on Fly, from desired state to running and gone. Empty until its issue is taken up.

Owns: nothing yet. Does not own: requests, money. It may use `metering`, and does not know `proxy`.
"""
