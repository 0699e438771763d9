"""Rows, durably: the group-committing writer, the readers, the schema.

Owns: connections, transactions, migrations. Does not own: what the statements mean (each room brings its
own). Invariants: one writer per process; a unit of work is all or none; a result is delivered only after
its commit; a unit that must be kept survives every trouble short of the process's death.
"""
