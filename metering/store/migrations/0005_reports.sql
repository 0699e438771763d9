-- The entries beside a request's own: what came above its hold, and what corrected it.
--
-- Why so: a user's list of requests shows each with all that was booked for it. Found by the request, as its
-- resolution is (`entries_resolution`); partial, so that a request without any of it writes nothing here.

CREATE INDEX entries_corrections ON entries (reservation_id) WHERE kind IN ('overage', 'adjust');
