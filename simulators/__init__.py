"""The vendors, scripted: for tests, the demo and the bench. Real sockets, no network.

Owns: what a vendor would answer, at which pace and in which pieces, and a record of what it received.
Does not own: any code that the running proxy uses.
"""
