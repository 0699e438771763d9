-- Tickets: addresses that open one object of one user to whoever has them, for a while.
--
-- Why so: they are signed, so minting one costs no row, by a key that all workers have and nobody has to set. Only a
-- ticket that is good for once leaves a row, when it is used.

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,                   -- hexadecimal
    created_at_ms INTEGER NOT NULL
);

CREATE TABLE spent_tickets (
    ticket TEXT PRIMARY KEY,
    until_ms INTEGER NOT NULL              -- nobody needs the row after that
);
CREATE INDEX spent_tickets_by_age ON spent_tickets (until_ms);

-- Why we ended work that goes on by itself, for a user who may go on otherwise: its budget, or nobody knew of it.
ALTER TABLE deferred_work ADD COLUMN ended_because TEXT NOT NULL DEFAULT '';
