-- Work that is only scheduled by its request, and done by the vendor at a time of its own: an e-mail that goes out later.
--
-- Why so: it is written down with its reservation, before the vendor hears of it, so that whatever becomes of the
-- request, somebody asks what became of the work. Requests that may have ended it are noted beside it, because a
-- vendor that knows nothing of it any more does not say whether it was done.

ALTER TABLE deferred_work ADD COLUMN about TEXT NOT NULL DEFAULT '';       -- the object that it belongs to (an inbox)
ALTER TABLE deferred_work ADD COLUMN scheduled_at_ms INTEGER;              -- when it is to be done; NULL: it has begun
ALTER TABLE deferred_work ADD COLUMN is_open INTEGER NOT NULL DEFAULT 0;   -- its request is under way
ALTER TABLE deferred_work ADD COLUMN is_seen INTEGER NOT NULL DEFAULT 0;   -- the vendor has said that it knows of it
ALTER TABLE deferred_work ADD COLUMN absences INTEGER NOT NULL DEFAULT 0;  -- polls that found nothing of it
CREATE INDEX deferred_work_by_id ON deferred_work (surface, upstream_id);
CREATE INDEX deferred_work_by_about ON deferred_work (surface, about) WHERE scheduled_at_ms IS NOT NULL;
CREATE INDEX deferred_work_open ON deferred_work (reservation_id) WHERE is_open = 1;
CREATE INDEX reservations_due ON reservations (due_at_ms) WHERE state = 'HELD' AND due_at_ms IS NOT NULL;

CREATE TABLE deferred_touches (
    reservation_id TEXT NOT NULL,          -- the scheduled work
    request_id TEXT NOT NULL,              -- a request that may change or end it
    PRIMARY KEY (reservation_id, request_id)
);
CREATE INDEX deferred_touches_by_request ON deferred_touches (request_id);

-- A record kind of the replaced service: what was sent, or may have been. Whom it went to and what about is nowhere here.
CREATE VIEW email_sends AS
SELECT CAST(seq AS TEXT) AS id, user_id, at_ms / 1000 AS sent_at, NULL AS recipient, NULL AS subject,
    cost_nanousd / 1000 AS cost_microdollars, usage AS metadata, reservation_id AS request_id
FROM entries WHERE surface IN ('agentmail', 'email') AND kind IN ('settle', 'expire') AND cost_nanousd > 0;
