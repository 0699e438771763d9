"""An agent's machine on Fly, from desired state to running and gone. Empty until it is built.

Owns: nothing yet. Does not own: requests, money. It may use `metering`, and does not know `proxy`.
"""
