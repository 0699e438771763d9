-- Objects that a vendor keeps for one of our users, and work that goes on after its request.
--
-- Why so: all users share one account at a vendor, so whose an object is stands only here. An id is bound before
-- its user sees it; the primary key is what makes two owners impossible.

CREATE TABLE owned_objects (
    vendor TEXT NOT NULL,                  -- the surface's name: openai
    kind TEXT NOT NULL,                    -- response, item, ...
    upstream_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reservation_id TEXT NOT NULL,          -- the request that first handed it out
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (vendor, kind, upstream_id)
);
CREATE INDEX owned_objects_by_user ON owned_objects (user_id);

CREATE TABLE deferred_work (
    reservation_id TEXT PRIMARY KEY,       -- HELD until a poll finds the work ended, or its due_at_ms passes
    surface TEXT NOT NULL,
    operation TEXT NOT NULL,
    upstream_id TEXT NOT NULL,             -- the object under which it goes on
    demand TEXT NOT NULL,                  -- JSON: what its request may cause, to read a poll's answer by
    poll_at_ms INTEGER NOT NULL,
    polls INTEGER NOT NULL
);
CREATE INDEX deferred_work_by_poll ON deferred_work (poll_at_ms);
