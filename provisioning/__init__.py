"""An agent's machine on Fly, from wish to running, and gone without a trace.

Owns: what is wished for each user's machine (`machines.py`), the rows that say how far it has come (`instances.py`), the one file
that follows an instance from wish to ready and back to nothing (`lifecycle.py`), who works on which (`worker.py`), the vendors'
APIs that it takes (`fly.py`, `integrations.py`), what a machine is (`template.py` with `placeholders.py`, `machines.toml`,
`openclaw.json`), how a running one is changed (`changes.py`), and the look for drift and orphans (`reconcile.py`). Does not own: requests, money, who a token is of. It may use `metering`, and does not know
`proxy`.

Invariants: a thing has a row before the call that makes it. What a call did whose answer is not known is found out by looking,
never by making it again. Nothing that exists already is taken for a user's own before it says so itself. Whoever writes holds a
claim that has not passed to another since.
"""
