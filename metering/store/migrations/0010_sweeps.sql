-- Objects without an owner, looked for at vendors; work at vendors of users who may do nothing any more.
--
-- Why so: an object whose request died before its answer has no row, and nobody could use or delete it. Who looks for such
-- is whoever moves `due_at_ms` first, as with polls of deferred work. What an operator took from its owner is remembered,
-- or the next sweep would give it back. How often a vendor was told to end work stands in the work's own row, so that a
-- restart neither forgets nor repeats it without end.

CREATE TABLE sweeps (
    vendor TEXT NOT NULL,
    kind TEXT NOT NULL,
    due_at_ms INTEGER NOT NULL,
    PRIMARY KEY (vendor, kind)
);

CREATE TABLE released_objects (
    vendor TEXT NOT NULL,
    kind TEXT NOT NULL,
    upstream_id TEXT NOT NULL,
    user_id TEXT NOT NULL,                 -- the last whose it was
    released_at_ms INTEGER NOT NULL,
    PRIMARY KEY (vendor, kind, upstream_id)
);

ALTER TABLE deferred_work ADD COLUMN end_attempts INTEGER NOT NULL DEFAULT 0;    -- begun so far
ALTER TABLE deferred_work ADD COLUMN end_at_ms INTEGER;        -- the next attempt; NULL: at once, should its user lose access
ALTER TABLE deferred_work ADD COLUMN end_told_at_ms INTEGER;   -- when the vendor had heard
